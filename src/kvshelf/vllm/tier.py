"""A storage tier for vLLM's TieringOffloadingSpec: GPU, host memory, shelf.

    lookup, touch, events -> KvshelfManager, as in the direct path
    store, load           -> Shelf, whose block memory is vLLM's host memory: a row is a block

A row of host memory holds a chunk of all ranks, so a chunk is one file, of rank 0. Everything runs
on the scheduler's thread and nothing waits for storage, but for ``drain_jobs`` and ``shutdown``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from typing_extensions import override
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult as TierResult
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager

from kvshelf.config import VLLM_KEYS, Settings, default_threads
from kvshelf.config.values import parse_bool
from kvshelf.disk.namespace import Identity
from kvshelf.engine import EngineConfig, FileStatus, GroupMemory, JobKind, JobResult, Pages, Phase
from kvshelf.errors import ConfigError
from kvshelf.shelf import Chunk, Shelf
from kvshelf.upkeep.evict.duties import duties_of
from kvshelf.vllm import compat
from kvshelf.vllm.scheduler.chunk_table import ChunkTable
from kvshelf.vllm.scheduler.manager import KvshelfManager
from kvshelf.vllm.spec import IDENTITY_KEY
from kvshelf.vllm.stats import metric_definitions
from kvshelf.vllm.worker.transfers import Transfers

logger = compat.logger_of(__name__)

# Of an identity, what other parallel sizes change though the bytes stay the same.
_OF_ONE_RANK = ("num_kv_heads", "page_bytes")


class KvshelfTier(SecondaryTierManager):
    """Source: vLLM's SecondaryTierManager (vllm/v1/kv_offload/tiering/base.py), 0.26 to 0.33.

    Args:
        offloading_spec: vLLM's; its configuration holds the identity that our connector left there.
        primary_kv_view: host memory, [chunks, bytes of a chunk of all ranks].
        tier_type: the name under which vLLM counts and logs this tier.
        backpressure_detector: vLLM's, used by vLLM alone.
        options: the settings of kvshelf, and those of vLLM's ``fs`` tier: ``root_dir`` (our
            ``shared_storage_path``), ``n_read_threads`` and ``n_write_threads`` (their sum is our
            ``threads_per_gpu``; without both: the number of cores, 4 to 32), ``enable_kv_events``,
            ``locality`` (LOCAL or REMOTE, which KV events repeat).

    Attributes:
        manager: the scheduler's side of it.

    Raises:
        ConfigError: a setting is unknown or malformed, the root cannot be used, or kvshelf's
            plugin is disabled.
    """

    medium = compat.STORAGE_MEDIUM

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str = "KvshelfTier",
        backpressure_detector: Any = None,
        *,
        enable_kv_events: bool | str | None = False,
        locality: str | None = None,
        module_path: str | None = None,
        **options: Any,
    ) -> None:
        del module_path  # where this class is: vLLM 0.26 hands it on
        super().__init__(offloading_spec, primary_kv_view, tier_type)
        compat.set_tier_options(self, backpressure_detector, locality)
        settings = tier_settings(options)
        config = offloading_spec.config
        wants_events = parse_bool("enable_kv_events", enable_kv_events or False)
        if wants_events and not config.enable_kv_cache_events:
            logger.warning(
                "kvshelf: enable_kv_events of tier %s has no effect, for vLLM publishes no KV "
                "events: set enable_kv_cache_events in --kv-events-config",
                tier_type,
            )
        memory = _row_memory(primary_kv_view)
        identity = tier_identity(_given_identity(offloading_spec), config, memory.block_bytes)
        engine = EngineConfig.from_settings(settings)
        self._close_timeout_seconds = settings.close_timeout_seconds
        self._job_timeout_seconds = 1.0 + max(
            settings.load_timeout_seconds,
            settings.max_write_queued_seconds + settings.store_timeout_seconds,
        )
        # Under way in the shelf: vLLM's keys, and whether some of the job's are not even tried.
        self._jobs: dict[int, tuple[tuple[bytes, ...], bool]] = {}
        self._done: list[TierResult] = []  # ended at submission
        ids = compat.group_ids(config)
        # Rows are pinned until a store is finished, so it writes straight from them.
        self._shelf = Shelf(
            settings.roots,
            identity,
            groups=[memory] * len(ids),
            group_ids=ids,
            config=replace(engine, write_behind=False, lookup_threads=1),
        )
        self._transfers = Transfers(self._shelf, logger)
        self.manager = KvshelfManager(
            Shelf(settings.roots, identity, config=engine),
            ChunkTable.of(settings, num_workers=1),
            settings,
            chunk_bytes=memory.block_bytes,
            chunk_tokens=offloading_spec.blocks_per_chunk
            * min(group.tokens_per_block for group in config.groups),
            emit_events=wants_events and config.enable_kv_cache_events,
            duties=duties_of(settings, self._shelf),
        )

    @override
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        self.manager.begin_scan(req_context.req_id)
        return self.manager.lookup(key, req_context)

    @override
    def submit_store(self, job_metadata: Any) -> None:
        job_id, rows = job_metadata.job_id, compat.tier_rows(job_metadata)
        there = self.manager.stored(job_metadata.keys, job_metadata.req_context)
        offered = self.manager.prepare_store(job_metadata.keys, job_metadata.req_context)
        assert offered is not None  # ours is never
        row_of = {key: rows[i : i + 1] for i, key in enumerate(job_metadata.keys)}
        keys = tuple(offered.keys_to_store)
        chunks = [
            Chunk(name, row_of[key])
            for key, name in zip(keys, offered.store_spec.keys, strict=True)
        ]
        # What is neither wanted nor there was refused, say because its root is suspended.
        is_refused = not there.union(keys) >= set(job_metadata.keys)
        if self._transfers.store(job_id, chunks):
            self._jobs[job_id] = keys, is_refused
            return
        # Without a number, vLLM would take all of the job's bytes for written.
        ok = not chunks and not is_refused
        self._done.append(compat.tier_result(job_id, ok=ok, moved_bytes=0))

    @override
    def submit_load(self, job_metadata: Any) -> None:
        job_id, rows = job_metadata.job_id, compat.tier_rows(job_metadata)
        keys = tuple(job_metadata.keys)
        names = self.manager.prepare_load(keys, job_metadata.req_context).keys if keys else ()
        chunks = [Chunk(name, rows[i : i + 1]) for i, name in enumerate(names)]
        if self._transfers.load(job_id, chunks):
            self._jobs[job_id] = keys, False
        else:
            self._done.append(compat.tier_result(job_id, ok=not keys, moved_bytes=0))

    @override
    def get_finished_jobs(self) -> Iterable[TierResult]:
        results, self._done = self._done, []
        results += [
            self._finished(result)
            for result in self._shelf.poll()
            if result.phase is Phase.FINISHED
        ]
        report = self._transfers.take_report()
        if report is not None:
            self.manager.absorb(report)
        return results

    @override
    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self.manager.touch(keys, req_context)

    @override
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        self.manager.on_new_request(req_context)
        # A chunk that failed to load is computed into host memory, and stored from there.
        return RequestOffloadingContext()

    @override
    def on_request_finished(self, req_context: ReqContext) -> None:
        self.manager.on_request_finished(req_context)

    @override
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self.manager.on_schedule_end(context)

    @override
    def take_events(self) -> Iterable[Any]:
        return (compat.located(each, self.locality) for each in self.manager.take_events())

    @override
    def drain_jobs(self) -> None:
        """Wait until every job has ended: each does by its deadline, also if storage hangs."""
        jobs = list(self._jobs)
        if jobs and not self._shelf.wait(jobs, Phase.FINISHED, self._job_timeout_seconds):
            self._shelf.cancel(jobs)  # with max_write_queued_seconds=0 stores may queue for ever
            self._shelf.wait(jobs, Phase.FINISHED, self._job_timeout_seconds)

    @override
    def shutdown(self) -> None:
        self._transfers.close(self._close_timeout_seconds)
        self.manager.shutdown()

    @classmethod
    @override
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        del extra_config  # all of them, whatever the settings
        return metric_definitions()

    @override
    def get_stats(self) -> Any:
        return self.manager.get_stats()

    def _finished(self, result: JobResult) -> TierResult:
        keys, is_refused = self._jobs.pop(result.job_id)
        self._transfers.ended(result)
        pairs = zip(keys, result.statuses, strict=True)
        good = [key for key, status in pairs if status is FileStatus.OK]
        return compat.tier_result(
            result.job_id,
            ok=not is_refused and len(good) == len(keys),
            loaded=good if result.kind is JobKind.LOAD else (),
            seconds=result.seconds,
            moved_bytes=result.payload_bytes,
        )


def tier_settings(options: dict[str, Any]) -> Settings:
    """The settings of a tier's entry in ``secondary_tiers``.

    Raises:
        ConfigError: one is unknown or malformed, or there are two names for one thing.
    """
    given = dict(options)
    if "audit_percent" in given:  # the tier never sees what computed a row of host memory
        raise ConfigError(
            "audit_percent", given["audit_percent"], "not in a tier: only KvshelfConnector audits"
        )
    for name in VLLM_KEYS & given.keys():  # they belong beside secondary_tiers
        raise ConfigError(name, given[name], "not in a tier: give it in kv_connector_extra_config")
    if "root_dir" in given:
        if "shared_storage_path" in given:
            raise ConfigError(
                "root_dir", given["root_dir"], "not together with shared_storage_path"
            )
        given["shared_storage_path"] = given.pop("root_dir")
    threads = [
        _positive(name, given.pop(name))
        for name in ("n_read_threads", "n_write_threads")
        if name in given
    ]
    # As many as the fs tier has, for one tier serves all ranks; but no more than cores.
    given.setdefault("threads_per_gpu", sum(threads) or default_threads(most=32))
    return Settings.from_mapping(given)


def tier_identity(identity: Identity, config: Any, row_bytes: int) -> Identity:
    """Who shares a tier's files: those of the direct path never, other parallel sizes where vLLM
    certifies that a row has the same bytes (its canonical layout, replicated MLA).

    Args:
        config: vLLM's OffloadingConfig.
        row_bytes: of a chunk in host memory, padding included.
    """
    portable, layout = compat.row_layout(config)
    fields = dict(identity.fields)
    if portable:
        fields["parallel"] = "any"
        fields["groups"] = [
            {name: value for name, value in group.items() if name not in _OF_ONE_RANK}
            for group in fields["groups"]
        ]
    fields["tier"] = {"layout": layout, "row_bytes": row_bytes}
    return Identity(fields)


def _given_identity(offloading_spec: Any) -> Identity:
    identity = offloading_spec.extra_config.get(IDENTITY_KEY)
    if not isinstance(identity, Identity):
        raise ConfigError(
            "secondary_tiers",
            "KvshelfTier",
            "kvshelf's vLLM plugin must be loaded: it is disabled by VLLM_PLUGINS, or the "
            "connector is neither KvshelfConnector nor OffloadingConnector",
        )
    return identity


def _row_memory(view: memoryview) -> GroupMemory:
    """Rows of host memory as blocks of one page. Keeps no reference: vLLM releases the view, and
    only after ``shutdown``."""
    rows = np.asarray(view)
    page = Pages(rows.ctypes.data, stride_bytes=rows.strides[0], page_bytes=rows[0].nbytes)
    return GroupMemory((page,), num_blocks=len(rows))


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(name, value, "a whole number from 1")
    return value
