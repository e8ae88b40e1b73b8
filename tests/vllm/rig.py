"""vLLM's real scheduler with our real connector and worker, over a model that is a function.

    rig = Rig(tmp_path / "shelf", tmp_path / "model")
    answer = rig.ask(prompt, max_tokens=4)      # runs the engine until it is answered
    rig.settle()                                # stores are on the shelf
    assert rig.faults() == []                   # every byte read or stored is the right one

A slot of KV memory is a function of the tokens up to it (``tests/vllm/model.py``). Each step checks
what a request is about to read, and ``faults`` compares every chunk on the shelf with the function.
All calls of vLLM's engine core and model runner are made in their order;
vLLM's native parts are not needed, so this runs on every supported version.

``hold_stores`` keeps a store's bytes unread until vLLM waits for the job or ``let_go`` is called:
storage so slow that a block is reused first, without any race.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from vllm.config import set_current_vllm_config
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import KVCacheTensor
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker import kv_connector_model_runner_mixin as mixin

from kvshelf.disk.keys import group_of, hash_of
from kvshelf.vllm import patches, plugin
from tests.harness.codec import HEADER_BYTES, decode

from .configs import kv_cache_config, vllm_config
from .model import BLOCK, Executor, Runner, answer_to, mark, prompt_of, states_of

__all__ = ["BLOCK", "CHUNK", "Rig", "answer_to", "ours", "prompt_of", "rigs", "states_of"]
CHUNK = 64  # tokens, unless told otherwise
WAIT_SECONDS = 120.0  # an engine that takes longer never ends
_IDS = itertools.count()
_ENGINE: dict[str, Any] = {
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 1024,
    "async_scheduling": False,
}
_SPECULATIVE = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}


class Rig:
    """One engine of one rank. Not thread-safe, like vLLM's engine core.

    Args:
        shelf: the root.
        model: a folder for the model's configuration; the same for replicas that share.
        blocks: of KV memory, block 0 included, which vLLM never gives away.
        seed: the model's weights.
        extra: settings of kvshelf.
        children: with any, a MultiConnector of these configurations; ``ours()`` makes one of them.
        hold_stores: see the module.
        draft: proposes tokens after the given ones (speculative decoding).
        engine: arguments of vLLM's engine.
    """

    def __init__(
        self,
        shelf: Path,
        model: Path,
        *,
        blocks: int = 64,
        groups: int = 1,
        seed: bytes = b"",
        role: str = "kv_both",
        extra: dict[str, Any] | None = None,
        children: Sequence[dict[str, Any]] = (),
        hold_stores: bool = False,
        draft: Callable[[list[int]], list[int]] | None = None,
        **engine: Any,
    ) -> None:
        plugin.register()
        self.shelf, self.seed, self.draft = shelf, seed, draft
        transfer = ours(shelf, role, **(extra or {}))
        if children:
            transfer = {
                "kv_connector": "MultiConnector",
                "kv_role": role,
                "kv_connector_extra_config": {"connectors": list(children)},
            }
        drafts = {} if draft is None else {"speculative_config": _SPECULATIVE}
        self.config = vllm_config(
            model, **{**_ENGINE, **drafts, "kv_transfer_config": transfer, **engine}
        )
        (model / "pytorch_model.bin").write_bytes(bytes(64))  # the namespace names these weights
        self.config.cache_config.num_gpu_blocks = blocks
        cache = kv_cache_config(groups=groups)
        cache.num_blocks = blocks
        page_bytes = cache.kv_cache_groups[0].kv_cache_spec.page_size_bytes
        layers = [list(group.layer_names) for group in cache.kv_cache_groups]
        cache.kv_cache_tensors = _tensors(
            [n for names in layers for n in names], blocks, page_bytes
        )
        self.runner = Runner(layers, blocks, page_bytes, seed)
        with set_current_vllm_config(self.config):
            self.scheduler = _scheduler(self.config, cache)
            self.worker = KVConnectorFactory.create_connector(
                self.config, KVConnectorRole.WORKER, cache
            )
            self.worker.register_kv_caches(self.runner.caches)
        self.executor = Executor(seed)  # of the engine core, which says what weights there are
        for one in self.connectors():
            if one.weights is not None:
                one.weights.begin(self.executor, lambda: patches._alive(self.scheduler))
        self._held: list[Callable[[], None]] = []
        self._let_go_at_once = False
        if hold_stores:
            self._hold_stores()
        self._hasher = _hasher(self.config)
        self._meant: dict[bytes, list[int]] = {}  # block hash -> the tokens up to its end
        self._in_flight: list[tuple[Any, Any]] = []  # async scheduling: steps not yet told of
        self.requests: dict[str, Request] = {}
        self.answers: dict[str, list[int]] = {}

    def add(
        self,
        prompt: Sequence[int],
        *,
        name: str | None = None,
        max_tokens: int = 4,
        sampling: dict[str, Any] | None = None,
        **request: Any,
    ) -> str:
        """Queue a request; its id. ``request``: further arguments of vLLM's Request."""
        name = name or f"request-{next(_IDS)}"
        parameters = SamplingParams(
            max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **(sampling or {})
        )
        made = Request(
            request_id=name,
            prompt_token_ids=list(prompt),
            sampling_params=parameters,
            pooling_params=None,
            block_hasher=self._hasher,
            **request,
        )
        self.requests[name] = made
        self.answers[name] = []
        self.scheduler.add_request(made)
        return name

    def ask(self, prompt: Sequence[int], **options: Any) -> list[int]:
        """The engine's answer."""
        name = self.add(prompt, **options)
        self.run()
        return self.answers[name]

    def abort(self, *names: str) -> None:
        """As when clients hang up."""
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    def cached_tokens(self, name: str) -> int:  # which were not computed
        return self.runner.cached[name]

    def run(self) -> None:
        """Step until every request is answered."""
        self._until(lambda: not self.scheduler.has_unfinished_requests() and not self._in_flight)

    def settle(self) -> None:
        """Step until nothing is under way and files are written; stores are held no more."""
        self._let_go_at_once = True
        self._until(lambda: not self.scheduler.has_requests() and not self._in_flight)
        self._let_go_at_once = False
        for worker in self.workers():
            assert worker._shelf.drain(20)
        for _ in range(2):  # one carries the report, one the news
            self.step()

    def step(self) -> bool:
        """One step of vLLM's engine core. False: nothing was scheduled."""
        output = self.scheduler.schedule()
        self._in_flight.append((output, self._execute(output)))
        if self._let_go_at_once:
            self.let_go()
        depth = 2 if self.config.scheduler_config.async_scheduling else 1
        if len(self._in_flight) >= depth or not output.total_num_scheduled_tokens:
            self._tell()
        return bool(output.total_num_scheduled_tokens)

    def _until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not done():
            if not self.step():
                time.sleep(0.001)  # only storage is waited for
            if time.monotonic() > deadline:
                states = {name: str(r.status) for name, r in self.scheduler.requests.items()}
                raise AssertionError(f"the engine does not come to an end: {states}")

    def _tell(self) -> None:
        """The scheduler hears of the oldest step."""
        output, made = self._in_flight.pop(0)
        outputs = self.scheduler.update_from_output(output, made)
        for told in outputs.values():
            for each in told.outputs:
                self.answers[each.request_id] += each.new_token_ids
        if self.draft is not None:
            self._propose(output)

    def _propose(self, output: Any) -> None:
        names = [n for n in output.num_scheduled_tokens if n in self.scheduler.requests]
        drafts = []
        for name in names:
            running = self.runner.running[name]
            known = self.requests[name].num_tokens
            is_decoding = self.requests[name].num_computed_tokens >= known - 1
            running.drafts = self.draft(running.tokens) if self.draft and is_decoding else []
            drafts.append(running.drafts)
        self.scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))

    # The model runner

    def _execute(self, output: Any) -> Any:
        self.runner.learn(output, self.requests)
        self.worker.handle_preemptions(output.kv_connector_metadata)
        with ExitStack() as patches:
            for name, value in (
                ("has_kv_transfer_group", lambda: True),
                ("get_kv_transfer_group", lambda: self.worker),
                ("get_forward_context", lambda: None),
                ("set_forward_context", lambda *_, **__: nullcontext()),
            ):
                patches.enter_context(patch.object(mixin, name, value))
            runner = mixin.KVConnectorModelRunnerMixin
            if not output.total_num_scheduled_tokens:
                return runner.kv_connector_no_forward(output, self.config)
            with runner.maybe_get_kv_connector_output(output) as connector_output:
                sampled = {
                    name: self.runner.forward(name, output) for name in output.num_scheduled_tokens
                }
        names = list(sampled)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[sampled[name] for name in names],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=None,
            kv_connector_output=connector_output,
        )

    def _note(self, name: str) -> None:
        request = self.requests[name]
        for i, block_hash in enumerate(request.block_hashes):
            self._meant.setdefault(
                bytes(block_hash), list(request.all_token_ids[: (i + 1) * BLOCK])
            )

    def faults(self, *others: Rig) -> list[str]:
        """Slots that requests were about to read, and chunks on the shelf, that are not right.

        ``others``: engines that store on this shelf, whose requests say what keys mean.
        """
        meant = dict(self._meant)
        for rig in (self, *others):
            for name in rig.requests:
                rig._note(name)
            meant |= rig._meant
        wrong = [*self.runner.wrong]
        for path in self.chunk_files():
            wrong += self._wrong_in(path, meant)
        return wrong

    def chunk_files(self) -> list[Path]:
        return sorted(self.shelf.rglob("*.kv"))

    def _wrong_in(self, path: Path, meant: dict[bytes, list[int]]) -> Iterator[str]:
        data = path.read_bytes()
        header = decode(data[:HEADER_BYTES])
        tokens = meant.get(hash_of(header.key))
        if tokens is None:
            yield f"{path.name}: no request has this key"
            return
        layers = self.runner.layers[group_of(header.key)]
        payload = np.frombuffer(data[HEADER_BYTES:], np.uint8)[: header.payload_bytes]
        rows = payload.reshape(header.block_count, len(layers), BLOCK, -1)
        end = len(tokens)
        states = states_of(tokens, self.seed)
        first = end - header.block_count * BLOCK
        for position in range(first, end):
            row, slot = divmod(position - first, BLOCK)
            for i in range(len(layers)):
                if not np.array_equal(
                    rows[row, i, slot], mark(states[position], i, rows.shape[-1])
                ):
                    yield f"{path.name}: slot {position} of {end} tokens"
                    return

    def connectors(self) -> Iterator[Any]:
        """Our connectors, of both roles."""
        for each in (self.scheduler.connector, self.worker):
            for one in getattr(each, "_connectors", [each]):
                if type(one).__name__ == "KvshelfConnector":
                    yield one

    def workers(self) -> list[Any]:
        return [c.kvshelf_worker for c in self.connectors() if c.kvshelf_worker is not None]

    def manager(self) -> Any:
        (manager,) = [c._manager for c in self.connectors() if c.connector_scheduler is not None]
        return manager

    def _hold_stores(self) -> None:
        for worker in self.workers():
            store = worker._shelf.submit_store

            def submit(job: int, chunks: Any, *more: Any, _store: Any = store) -> Any:
                self._held.append(lambda: _store(job, chunks, *more))
                return [(0, range(len(chunks)))]

            def wait_for(jobs: set[int], _wait: Any = worker.wait) -> None:
                self.let_go()
                _wait(jobs)

            worker._shelf.submit_store = submit
            worker.wait = wait_for

    def let_go(self) -> None:
        """Have the stores that are held read their blocks, as they are now."""
        while self._held:
            self._held.pop(0)()

    def close(self) -> None:
        self.let_go()
        self.worker.shutdown()
        self.scheduler.shutdown()


@contextmanager
def rigs(*made: Rig) -> Iterator[tuple[Rig, ...]]:
    try:
        yield made
    finally:
        for each in made:
            each.close()


def ours(shelf: Path, role: str = "kv_both", **extra: Any) -> dict[str, Any]:
    """Our connector's configuration: lookups are waited for, nothing is evicted."""
    return {
        "kv_connector": "KvshelfConnector",
        "kv_role": role,
        "kv_connector_extra_config": {
            "shared_storage_path": str(shelf),
            "block_size": CHUNK,
            "evict": False,
            "admission": "always",
            "min_hit_tokens": 0,
            "lookup_wait_seconds": 5.0,
            **extra,
        },
    }


def _tensors(names: Sequence[str], blocks: int, page_bytes: int) -> list[Any]:
    """What a vLLM is told of layers' memory: until 0.28 each layer's, since then the whole."""
    size = blocks * page_bytes
    if "shared_by" in KVCacheTensor.__dataclass_fields__:
        return [KVCacheTensor(size=size, shared_by=[name]) for name in names]
    whole = {"size": size * len(names), "layer_stride": size, "block_stride": page_bytes}
    return [KVCacheTensor(layers=list(names), **whole)]


def _scheduler(config: Any, cache: Any) -> Any:
    block, hash_block = kv_cache_utils.resolve_kv_cache_block_sizes(cache, config)
    if hasattr(cache, "hash_block_size"):
        cache.hash_block_size = hash_block
    scheduler_class = config.scheduler_config.get_scheduler_cls()
    return scheduler_class(
        vllm_config=config,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=block,
        hash_block_size=hash_block,
        log_stats=True,
    )


def _hasher(config: Any) -> Any:  # after our connector has fixed the seed, as the core does
    hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    kv_cache_utils.init_none_hash(hash_function)
    return kv_cache_utils.get_request_block_hasher(BLOCK, hash_function)
