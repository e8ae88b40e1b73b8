"""A pytest plugin that puts kvshelf's classes into vLLM's own offloading tests.

Loaded with ``-p kvshelf_peer`` by scripts/peer.py, in the folder of vLLM's tests; of those nothing
is changed. KVSHELF_PEER_RESULTS names a file, to which each test's outcome is written.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.v1.kv_offload.base import LookupResult, ScheduleEndContext
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from kvshelf import Chunk, Identity, make_key
from kvshelf.engine import Phase
from kvshelf.vllm.connector import KvshelfConnector
from kvshelf.vllm.spec import IDENTITY_KEY
from kvshelf.vllm.tier import KvshelfTier

IDENTITY = Identity(
    {"model": "m", "parallel": {"tensor": 1}, "groups": [{"layers": 1, "page_bytes": 64}]}
)
WAIT_SECONDS = 20.0


class PeerTier(KvshelfTier):
    """KvshelfTier, made from the mocks that vLLM's tests give to a tier.

    Attributes:
        events: theirs keeps events here; where a test looks, there are none.
    """

    events = None

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str = "KvshelfTier",
        backpressure_detector: Any = None,
        **options: Any,
    ) -> None:
        options.setdefault("root_dir", _scratch("shelf"))
        spec = _spec_like(offloading_spec)
        super().__init__(
            spec, primary_kv_view, tier_type, backpressure_detector, evict=False, **options
        )
        self._planted = 0

    @property
    def file_mapper(self) -> Any:
        """Where a chunk's file is."""
        root = Path(self._shelf.roots[0])
        return SimpleNamespace(get_file_name=lambda key: str(root / self._shelf.path_of(key)))


class SettledTier(PeerTier):
    """With the ways of vLLM's example tier, which does everything at once and lets tests look in.

    ``chunks[key] = True`` stores a chunk past the tier, as another replica would.
    """

    def __init__(self, *args: Any, custom_param: int = 0, **options: Any) -> None:
        del custom_param
        super().__init__(*args, **options)

    def lookup(self, key: Any, req_context: Any) -> LookupResult:
        return lookup_and_wait(super(), [key], req_context)[0]

    def get_finished_jobs(self) -> Any:
        self.drain_jobs()
        return super().get_finished_jobs()

    @property
    def completed_jobs(self) -> list[Any]:
        self._done = list(self.get_finished_jobs())
        return self._done

    @property
    def chunks(self) -> Any:
        return self

    def __setitem__(self, key: bytes, value: bool) -> None:
        assert value
        self._planted -= 1
        others = list(self.completed_jobs)
        self._shelf.submit_store(self._planted, [Chunk(key, np.zeros(1, np.int32))])
        assert self._shelf.wait([self._planted], Phase.FINISHED, WAIT_SECONDS)
        assert all(result.job_id == self._planted for result in self._shelf.poll())
        self._done = others

    def get_num_chunks(self) -> int:
        self.completed_jobs.sort(key=lambda result: result.job_id)
        return len(list(Path(self._shelf.roots[0]).rglob("*.kv")))


class PeerConnector(KvshelfConnector):
    """KvshelfConnector as for its own spec, over the mocked manager and worker of vLLM's tests."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._ours = True

    @property
    def _manager(self) -> Any:
        return SimpleNamespace(
            begin_scan=lambda *_: None,
            prefetch=lambda *_: None,
            admit=lambda *_: True,
            audits=SimpleNamespace(picks=lambda *_: False),
            absorb=lambda *_: None,
            admission=SimpleNamespace(computed=lambda *_: None),
        )

    @property
    def kvshelf_worker(self) -> Any:
        return None


def _spec_like(mock: Any) -> Any:
    """What a tier reads of vLLM's spec, with the identity that our connector leaves there."""
    extra = {IDENTITY_KEY: IDENTITY}
    group = OffloadingGroupConfig(tokens_per_block=16, layer_names=("layer",), group_id=0)
    config = mock.config if isinstance(mock.config, OffloadingConfig) else _config()
    config = replace(config, groups=(group,), extra_config=extra)
    return SimpleNamespace(config=config, extra_config=extra, blocks_per_chunk=1)


def _config() -> OffloadingConfig:
    names = inspect.signature(OffloadingParallelConfig).parameters
    sizes = {name: 1 for name in names if name.endswith("_size")}
    others: dict[str, Any] = {"rank": 0, "data_parallel_index": 0, "data_parallel_rank_local": None}
    return OffloadingConfig(
        groups=(),
        worker_kv_bytes_per_block=0,
        enable_kv_cache_events=True,
        extra_config={},
        engine_id="e",
        model=OffloadingModelConfig(name="m", dtype="float32"),
        cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
        parallel=OffloadingParallelConfig(**sizes, **others, is_parallelism_agnostic=False),
    )


def _scratch(name: str) -> str:
    return tempfile.mkdtemp(prefix=f"kvshelf-peer-{name}-", dir=os.environ["KVSHELF_PEER_SCRATCH"])


def lookup_and_wait(
    tier: Any, keys: list[bytes], ctx: Any = None, timeout: float = WAIT_SECONDS
) -> list[LookupResult]:
    """Look up until all is known. Theirs waits for a queue of their own tier's."""
    ctx = ctx or SimpleNamespace(req_id="test")
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found = [tier.lookup(key, ctx) for key in keys]
        tier.on_schedule_end(ScheduleEndContext(new_req_ids=[], preempted_req_ids=()))
        if LookupResult.RETRY not in found or time.monotonic() > deadline:
            return found
        time.sleep(0.001)


def to_keys(numbers: Iterable[int]) -> list[bytes]:
    """As long as vLLM's hashes are. Theirs have a byte or two."""
    return [make_key(str(number).encode().rjust(32, b"0"), 0) for number in numbers]


@pytest.fixture(scope="session")
def peer_model() -> str:
    """The configuration of a model, which vLLM's tests would fetch."""
    folder = _scratch("model")
    LlamaConfig(
        num_hidden_layers=1,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=16_384,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def kvshelf_put_in(
    request: pytest.FixtureRequest, peer_model: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    name = Path(request.path).name
    if name == "test_fs_tier.py":
        monkeypatch.setattr(request.module, "FileSystemTierManager", PeerTier)
        monkeypatch.setattr(request.module, "lookup_and_wait", lookup_and_wait)
        monkeypatch.setitem(SecondaryTierFactory._registry, "fs", lambda: PeerTier)
    elif name == "test_tiering_offloading.py":
        monkeypatch.setattr(request.module, "ExampleSecondaryTierManager", SettledTier)
        monkeypatch.setattr(request.module, "to_keys", to_keys)
    else:
        from tests.v1.kv_connector.unit import utils as common  # type: ignore[import-not-found]
        from tests.v1.kv_connector.unit.offloading_connector import utils

        def create_vllm_config(**arguments: Any) -> Any:
            made = common.create_vllm_config(model=peer_model, **arguments)
            made.model_config.skip_tokenizer_init = True
            return made

        monkeypatch.setattr(utils, "create_vllm_config", create_vllm_config)
        monkeypatch.setattr(utils, "OffloadingConnector", PeerConnector)
        registry = KVConnectorFactory._registry
        monkeypatch.setitem(registry, "OffloadingConnector", lambda: PeerConnector)
    yield


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("skip_global_cleanup", "slow_test", "cpu_test", "optional", "core_model"):
        config.addinivalue_line("markers", f"{marker}: of vLLM's")


class Results:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "failed" or (report.when == "call" and report.passed):
            self._outcomes[report.nodeid] = report.outcome
        elif report.skipped:
            self._outcomes.setdefault(report.nodeid, "skipped")

    def pytest_sessionfinish(self) -> None:
        self._file.write_text(json.dumps(self._outcomes, indent=1))


def pytest_sessionstart(session: pytest.Session) -> None:
    file = os.environ.get("KVSHELF_PEER_RESULTS")
    if file:
        session.config.pluginmanager.register(Results(Path(file)))
