"""vLLM's offloading connector, taught that a failed load is a miss.

KV connector roles: SCHEDULER (one, beside the scheduler) and WORKER (one a rank).
worker: failed chunks -> block ids (or the request) to vLLM, keys to the report
scheduler: report -> manager, so that the next lookup says MISS and the chunk is stored anew
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from kvshelf.vllm import compat, guards, patches
from kvshelf.vllm.adopt import ROLES, adopt_config, check_role, has_tier
from kvshelf.vllm.chunking import settle_chunk
from kvshelf.vllm.identity import build_identity
from kvshelf.vllm.report import KvshelfWorkerMetadata
from kvshelf.vllm.scheduler.engine_weights import EngineWeights
from kvshelf.vllm.scheduler.epochs import Epochs
from kvshelf.vllm.scheduler.manager import KvshelfManager
from kvshelf.vllm.scheduler.requests import (
    ADAPTER_UNKNOWN,
    OTHER_CONNECTOR,
    Hashing,
    reason_to_leave_alone,
)
from kvshelf.vllm.scheduler.step_clock import StepClock
from kvshelf.vllm.spec import IDENTITY_KEY
from kvshelf.vllm.worker.pages import PAGES_KEY, page_kinds
from kvshelf.vllm.worker.worker import KvshelfWorker, blocks_of
from kvshelf.weights import weights_are_known

logger = compat.logger_of(__name__)

# Of self-describing KV events, if a user asks for them: some 300 MB.
EVENT_PAYLOADS_MAX = 32_768


class KvshelfConnector(OffloadingConnector):
    """Source: vLLM's OffloadingConnector (kv_connector/v1/offloading_connector.py).

    Also registered in the place of ``OffloadingConnector``, so that a configuration of the llm-d
    backend works with only its module path changed. Given another spec under that name it is
    vLLM's connector and nothing else (``_ours`` is False).
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        self._ours = adopt_config(vllm_config.kv_transfer_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        self._extra = extra
        # Our chunks are made of what vLLM's connector offers, also by way of its host memory.
        self._guarded = self._ours or has_tier(extra)
        if self._guarded:
            check_role(vllm_config.kv_transfer_config)
            tell = role is KVConnectorRole.SCHEDULER
            settle_chunk(vllm_config, kv_cache_config, tell=tell)
            salt = extra.get("identity_salt", "")
            extra[IDENTITY_KEY] = build_identity(vllm_config, kv_cache_config, salt)
            patches.fix_hash_seed(str(vllm_config.cache_config.prefix_caching_hash_algo))
            extra[PAGES_KEY] = page_kinds(vllm_config, kv_cache_config)
        super().__init__(vllm_config, role, kv_cache_config)
        if self._guarded and role is KVConnectorRole.SCHEDULER:
            loads, stores = ROLES[vllm_config.kv_transfer_config.kv_role]
            for each in compat.managers_of(self.connector_scheduler):
                each.take_role(loads=loads, stores=stores)
        self._foreign = guards.ForeignBlocks()
        self._hashing = Hashing.of(vllm_config)
        # Of the scheduler's side, for ``kvshelf.vllm.patches``.
        self.weights: EngineWeights | None = None
        if self._guarded:
            self._watch_weights(role, names_weights=weights_are_known(vllm_config))
        self._step_clock = StepClock(
            steps_max=vllm_config.max_concurrent_batches,
            tells_all=vllm_config.parallel_config.world_size > 1,
        )
        # Whether the next output was one with news, where a MultiConnector says so.
        self.has_news: bool | None = None
        self._one_group = len(kv_cache_config.kv_cache_groups) == 1
        self._failed_blocks: set[int] = set()
        self._failed_requests: set[str] = set()
        # Worker's side: load job -> request, for models whose blocks cannot be named one by one.
        self._load_requests: dict[int, str] = {}

    def _watch_weights(self, role: KVConnectorRole, *, names_weights: bool) -> None:
        if role is KVConnectorRole.WORKER:
            patches.watch_worker()
            return
        patches.watch_engine()
        epochs = Epochs(names_weights=names_weights, has_other_caches=not self._ours)
        self.weights = EngineWeights(epochs)
        for each in compat.managers_of(self.connector_scheduler):
            each.follow(self.weights.epochs)

    @property
    def kvshelf_worker(self) -> KvshelfWorker | None:
        """Our worker's side in a worker's process."""
        side = self.connector_worker
        return side.worker if self._ours and side is not None else None

    @property
    def _manager(self) -> KvshelfManager:
        manager = self.connector_scheduler.manager
        assert isinstance(manager, KvshelfManager)
        return manager

    @property
    def keeps_own_kv(self) -> bool:
        """Whether this loads only what kvshelf loads, or this engine's host memory."""
        return self._ours or guards.is_host_memory(self._extra)

    def leave_alone(self, req_id: str, reason: str) -> None:
        """Have our manager, or our tiers below vLLM's, load and store nothing of a request."""
        for each in compat.managers_of(self.connector_scheduler):
            each.leave_alone(req_id, reason)

    def other_loads(self, request: Any) -> None:
        """Another connector loads KV of a request, computed with weights that are not known."""
        self._foreign.loaded(self.connector_scheduler, request)
        self.leave_alone(request.request_id, OTHER_CONNECTOR)

    @override
    def on_new_request(self, request: Any) -> None:
        super().on_new_request(request)
        reason = reason_to_leave_alone(self._hashing, request) if self._guarded else None
        reason = reason or self._take_adapter(request)
        if reason is not None:
            self.leave_alone(request.request_id, reason)
        elif self._ours and not request.skip_reading_prefix_cache:
            runs = compat.request_keys(self.connector_scheduler, request)
            self._manager.prefetch(runs, request.request_id)

    def _take_adapter(self, request: Any) -> str | None:
        """Tell the request's epoch and adapter; why it must be left alone, if it must."""
        if self.weights is None:
            return None
        self.weights.epochs.started(request.request_id)
        if request.lora_request is None:
            return None
        adapter = self.weights.adapter_of(request)
        if adapter is None:
            return ADAPTER_UNKNOWN
        for each in compat.managers_of(self.connector_scheduler):
            each.use_adapter(request.request_id, adapter)
        return None

    @override
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int, *args: Any, **kwargs: Any
    ) -> tuple[int | None, bool]:
        if self.weights is not None:
            self.weights.settle_if_possible()
        inner = super().get_num_new_matched_tokens
        if self._foreign.are_reused(self.connector_scheduler, request, num_computed_tokens):
            self.leave_alone(request.request_id, OTHER_CONNECTOR)
        if not self._ours:
            return inner(request, num_computed_tokens, *args, **kwargs)
        manager = self._manager
        manager.begin_scan(request.request_id, num_computed_tokens)
        found = inner(request, num_computed_tokens, *args, **kwargs)
        tokens = found[0]
        if not tokens:
            return found
        side = self.connector_scheduler
        ranges = compat.hit_ranges(side, num_computed_tokens, tokens)

        def keys() -> dict[bytes, int]:  # work for a long prompt, and seldom needed
            """Key -> index of its chunk's first token."""
            runs = compat.request_keys(side, request)
            return {
                run.keys[i]: i * run.chunk_tokens
                for run, r in zip(runs, ranges, strict=True)
                for i in r
                if i < len(run.keys)
            }

        admitted = manager.admit(
            request.request_id, tokens, sum(map(len, ranges)), lambda: list(keys())
        )
        if admitted is None:
            return None, False
        if admitted and not manager.audits.picks(
            request.request_id, num_computed_tokens, tokens, keys
        ):
            return found
        # Once more: lookups now say MISS, and vLLM's own state agrees with what it is told.
        manager.begin_scan(request.request_id)
        return inner(request, num_computed_tokens, *args, **kwargs)

    @override
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self.weights is not None:
            self.weights.epochs.computes()
        if self._guarded:
            guards.note_allocated(self.connector_scheduler, blocks)
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    @override
    def request_finished(self, request: Any, block_ids: Any) -> Any:
        if self._guarded:
            guards.store_only_computed(self.connector_scheduler, request)
        return super().request_finished(request, block_ids)

    @override
    def request_finished_all_groups(self, request: Any, block_ids: Any) -> Any:
        if self._guarded:
            guards.store_only_computed(self.connector_scheduler, request)
        return super().request_finished_all_groups(request, block_ids)

    @override
    def build_connector_meta(self, scheduler_output: Any) -> Any:
        if self.weights is not None and scheduler_output.total_num_scheduled_tokens:
            self.weights.epochs.computes()
        if self._ours:
            self._step_clock.begins(scheduler_output.total_num_scheduled_tokens, time.monotonic())
        if self._guarded:
            guards.note_copied(self.connector_scheduler, scheduler_output)
            scheduler_output = guards.without_reloads(self.connector_scheduler, scheduler_output)
        return super().build_connector_meta(scheduler_output)

    @override
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._ours and not self._one_group:
            for job_id, job in self._connector_metadata.load_jobs.items():
                self._load_requests[job_id] = job.req_id
        super().start_load_kv(forward_context, **kwargs)

    @override
    def get_finished(self, finished_req_ids: set[str]) -> tuple[Any, Any]:
        finished = super().get_finished(finished_req_ids)
        worker = self.kvshelf_worker
        if worker is not None:
            failed = worker.take_failed_loads()
            if self._one_group:
                self._failed_blocks |= blocks_of(failed)
            else:
                self._failed_requests |= {
                    self._load_requests[load.job_id]
                    for load in failed
                    if load.job_id in self._load_requests
                }
        return finished

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """Completions of this step, with requests whose load failed (vLLM since 0.30)."""
        results = super().get_transfer_results(finished_req_ids)
        if self._failed_requests:
            results.failed_recving |= self._failed_requests & results.finished_recving
            self._failed_requests.clear()
        return results

    @override
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks to recompute since the last call: of failed chunks and of all after them."""
        blocks, self._failed_blocks = self._failed_blocks, set()
        return blocks

    @override
    def build_connector_worker_meta(self) -> OffloadingWorkerMetadata | None:
        meta = super().build_connector_worker_meta()
        worker = self.kvshelf_worker
        if worker is None:
            return meta
        report = worker.take_report()
        if meta is None and report is None:
            return None
        wrapped = KvshelfWorkerMetadata()
        if meta is not None:
            wrapped.completed_jobs = meta.completed_jobs
            wrapped.transfer_stats = meta.transfer_stats
            if not self._one_group:
                for job_id in meta.completed_jobs:
                    self._load_requests.pop(job_id, None)
        if report is not None:
            wrapped.report = report
        return wrapped

    @override
    def update_connector_output(self, connector_output: Any) -> None:
        meta = connector_output.kv_connector_worker_meta
        if self._ours:
            has_news, self.has_news = self.has_news, None
            if has_news is None:
                has_news = not connector_output.is_empty()
            step = self._step_clock.ends(time.monotonic(), has_news=has_news)
            if step is not None:
                self._manager.admission.computed(*step)
        if self._ours and isinstance(meta, KvshelfWorkerMetadata):
            # First, so that a lookup after this step already knows what failed.
            self._manager.absorb(meta.report)
            if self.weights is not None:
                self.weights.saw_changes(
                    of_weights=meta.report.has_changed_weights,
                    of_adapters=meta.report.has_changed_adapters,
                )
        super().update_connector_output(connector_output)

    @override
    def take_events(self) -> Iterable[Any]:
        yield from super().take_events()
        if self._ours:
            compat.bound_event_payloads(self.connector_scheduler, EVENT_PAYLOADS_MAX)

    @classmethod
    @override
    def build_prom_metrics(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Called in the API server's process, which never makes a connector."""
        adopt_config(vllm_config.kv_transfer_config)
        guards.forget_series()
        return super().build_prom_metrics(vllm_config, *args, **kwargs)
