"""The storage backend of SGLang's HiCache: GPU, host memory, shelf.

    batch_exists -> Shelf.submit_lookup    SGLang's thread of lookups
    batch_get    -> Shelf.submit_load      its thread of reads
    batch_set    -> Shelf.submit_store     its thread of backups

Each call waits for its job, and each job ends by its deadline: storage that hangs delays a prefetch
or a backup. A page that is absent, damaged, foreign or late is a False. SGLang then computes it and
every page after it, and never reads the bytes of that page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolTransfer,
    PoolTransferResult,
)
from typing_extensions import override

from kvshelf import metrics
from kvshelf.config import Settings
from kvshelf.disk.keys import ChunkKey, make_key
from kvshelf.engine import EngineConfig, FileStatus
from kvshelf.engine.gauges import engine_gauges
from kvshelf.faultlog import FaultLog
from kvshelf.sglang.compat import pool_result, server_arguments
from kvshelf.sglang.eviction import NO_ROOM, Eviction
from kvshelf.sglang.groups import Groups, Part
from kvshelf.sglang.health import Health
from kvshelf.sglang.identity import identity_of, rank_of
from kvshelf.sglang.jobs import Jobs
from kvshelf.sglang.memory import HostPages
from kvshelf.sglang.settings import pages_per_chunk, read_settings
from kvshelf.sglang.stats import Stats
from kvshelf.shelf import Chunk, Shelf

logger = logging.getLogger(__name__)

_KV = "kv"


def _keys(hashes: Sequence[str]) -> list[ChunkKey]:
    """Chunk keys of SGLang's page hashes, SHA-256 in hexadecimal."""
    return [make_key(bytes.fromhex(each), 0) for each in hashes]


@dataclass(frozen=True, slots=True)
class _Pool:
    pages: HostPages
    shelf: Shelf
    jobs: Jobs
    groups: Groups


class KvshelfStorage(HiCacheStorage):
    """Source: SGLang's HiCacheStorage (sglang/srt/mem_cache/hicache_storage.py), 0.5.17 to 0.5.23.

    Args:
        storage_config: SGLang's; ``extra_config`` holds kvshelf's settings.

    Raises:
        ConfigError: a setting is unknown, malformed or of vLLM only. From
            ``register_mem_pool_host``: the root, the layout or the weights cannot be used.

    Threads: SGLang's three, one call each at a time; others too.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: Any = None) -> None:
        del kwargs  # SGLang's, empty
        self._config = storage_config
        self._settings: Settings = read_settings(storage_config.extra_config)
        self._pages_per_chunk = pages_per_chunk(storage_config.extra_config)
        self._stats = Stats()
        self._faults = FaultLog(logger)
        self._pools: dict[str, _Pool] = {}
        self._eviction: Eviction | None = None
        roots = ", ".join(self._settings.roots)
        self._reading, self._writing = (
            Health(side, roots, self._settings, self._stats, self._faults)
            for side in metrics.BREAKER_SIDES
        )

    @override
    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        pool = self._pools[_KV] = self._open(mem_pool_host, _KV)
        if pool.shelf.rank == 0 and self._config.pp_rank == 0 and self._config.tp_rank == 0:
            self._eviction = Eviction(self._settings, pool.shelf, self._stats, self._faults)

    @override
    def batch_exists(
        self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> int:
        """The number of leading pages that are on the shelf, of every rank."""
        found = self._found(_KV, keys, only_leading=True)
        return found.index(False) if False in found else len(found)

    @override
    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """Load pages into host memory: True where every byte was read and verified."""
        return self._load(_KV, keys, host_indices)

    @override
    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """Store pages from host memory: True where the page is on the shelf now."""
        return self._store(_KV, keys, host_indices)

    @override
    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if str(host_pool_name) not in self._pools:
            self._pools[str(host_pool_name)] = self._open(host_pool, str(host_pool_name))

    @override
    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """The longest prefix of which every pool has what its policy wants.

        Pools of policies other than ALL_PAGES and TRAILING_PAGES are not reported: no verdict.
        """
        kv_pages = self.batch_exists(keys)
        hits = {_KV: kv_pages} if kv_pages else {}
        restorable = set(range(1, kv_pages + 1))
        for transfer in pool_transfers or []:
            wants_all = transfer.hit_policy == PoolHitPolicy.ALL_PAGES
            if not wants_all and transfer.hit_policy != PoolHitPolicy.TRAILING_PAGES:
                continue
            window = kv_pages if wants_all else max(1, len(transfer.keys or ()))
            found = self._found(str(transfer.name), keys[:kv_pages], only_leading=wants_all)
            whole = {p for p in range(1, kv_pages + 1) if all(found[max(0, p - window) : p])}
            if whole:
                hits[str(transfer.name)] = max(whole)
            restorable &= whole
        return pool_result(max(restorable, default=0), hits, sorted(restorable))

    @override
    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return {each.name: self._moved(self._load, each) for each in transfers}

    @override
    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return {each.name: self._moved(self._store, each) for each in transfers}

    @override
    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    @override
    def get(
        self, key: str, target_location: Any | None = None, target_sizes: Any | None = None
    ) -> torch.Tensor | None:
        """Nothing: pages are read in place, by ``batch_get_v1``."""
        return None

    @override
    def batch_get(
        self,
        keys: list[str],
        target_locations: Any | None = None,
        target_sizes: Any | None = None,
    ) -> list[torch.Tensor | None]:
        return [None] * len(keys)

    @override
    def set(
        self,
        key: str,
        value: Any | None = None,
        target_location: Any | None = None,
        target_sizes: Any | None = None,
    ) -> bool:
        """Not stored: pages are written in place, by ``batch_set_v1``."""
        return False

    @override
    def batch_set(
        self,
        keys: list[str],
        values: Any | None = None,
        target_locations: Any | None = None,
        target_sizes: Any | None = None,
    ) -> bool:
        return False

    @override
    def clear(self) -> None:
        """Nothing is removed: other engines use the shelf."""
        logger.warning(
            "kvshelf: clear removes nothing from %s, which other engines use: use kvshelf evict",
            ", ".join(self._settings.roots),
        )

    def close(self) -> None:
        """End all threads. SGLang calls it once no prefetch or backup is under way."""
        if self._eviction is not None:
            self._eviction.close(1.0)
            self._eviction = None
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.shelf.drain(self._settings.close_timeout_seconds)
            pool.shelf.close(timeout_seconds=1.0)

    def _open(self, pool: Any, name: str) -> _Pool:
        pages = HostPages(pool)
        identity = identity_of(
            self._config,
            server_arguments(),
            pool=pool,
            pages=pages,
            name=name,
            settings=self._settings,
        )
        # Of a state, such as Mamba's, not every page of a prompt has one.
        groups = Groups(self._pages_per_chunk if name == _KV else 1)
        if groups.most > 1:
            identity = identity.with_field("pages_per_chunk", groups.most)
        rank, world = rank_of(self._config, name)
        shelf = Shelf(
            self._settings.roots,
            identity,
            rank=rank,
            world_size=world,
            groups=[pages.memory],
            # SGLang keeps a page's host memory until its backup is finished.
            config=replace(EngineConfig.from_settings(self._settings), write_behind=False),
            keep_alive=pool,
        )
        logger.info(
            "kvshelf: %s of rank %d of %d: %d pages of %d bytes, namespace %s in %s",
            name,
            rank,
            world,
            pages.memory.num_blocks,
            pages.memory.block_bytes,
            shelf.folder,
            ", ".join(shelf.roots),
        )
        return _Pool(pages, shelf, Jobs(shelf, self._faults), groups)

    def _found(self, name: str, hashes: Sequence[str], *, only_leading: bool) -> list[bool]:
        """Which pages are on the shelf.

        Args:
            only_leading: those after the first absent one are of no use.
        """
        if self._eviction is not None:
            self._eviction.take_news()
        pool = self._pools.get(name)
        if pool is None or not hashes or not self._reading.admits():
            return [False] * len(hashes)
        keys = _keys(hashes)
        # With several pages a chunk, a page's name may be absent and the page there.
        runs = [len(keys)] if only_leading and pool.groups.most == 1 else []
        result = pool.jobs.ask(
            lambda job: pool.shelf.submit_lookup(job, keys, runs),
            self._settings.lookup_wait_seconds,
        )
        if result is None:
            self._reading.fault("lookup timed out")
            self._stats.count(metrics.LOOKUPS, "timeout", by=len(keys))
            return [False] * len(keys)
        self._reading.saw(result.statuses)
        self._stats.observe(metrics.LOOKUP_SECONDS, result.seconds)
        for label, statuses in (
            ("hit", {FileStatus.OK}),
            ("miss", {FileStatus.NOT_FOUND}),
            ("timeout", {FileStatus.TIMED_OUT}),
            ("error", {FileStatus.IO_ERROR}),
        ):
            count = sum(each in statuses for each in result.statuses)
            if count:
                self._stats.count(metrics.LOOKUPS, label, by=count)
        return pool.groups.found(hashes, [each is FileStatus.OK for each in result.statuses])

    def _load(self, name: str, hashes: Sequence[str], host_indices: torch.Tensor) -> list[bool]:
        pool = self._pools.get(name)
        if pool is None or not hashes or not self._reading.admits():
            return [False] * len(hashes)
        parts, rows = pool.groups.to_load(hashes), pool.pages.rows(host_indices, len(hashes))
        keys = _keys([part.name for part in parts])
        result = pool.jobs.run(
            lambda job: pool.shelf.submit_load(job, _chunks(keys, parts, rows)),
            self._settings.load_timeout_seconds,
        )
        if result is None:
            return [False] * len(hashes)
        self._reading.saw(result.statuses)
        good = [status is FileStatus.OK for status in result.statuses]
        stats = self._stats
        stats.count(metrics.LOAD_CHUNKS, by=sum(good))
        stats.count(metrics.LOAD_BYTES, by=result.payload_bytes)
        stats.observe(metrics.LOAD_SECONDS, result.seconds)
        for key, status, error in zip(keys, result.statuses, result.errnos, strict=True):
            if status is not FileStatus.OK:
                cause = status.name.lower()
                stats.count(metrics.LOAD_FAILURES, cause)
                self._faults.fault(f"load failed ({cause}), recompute", _described(key, error))
        pool.shelf.touch([key for key, is_good in zip(keys, good, strict=True) if is_good])
        self._show_gauges(pool)
        return _of_pages(parts, good)

    def _store(self, name: str, hashes: Sequence[str], host_indices: torch.Tensor) -> list[bool]:
        pool = self._pools.get(name)
        if pool is None or not hashes or not self._writing.admits():
            return [False] * len(hashes)
        parts, rows = pool.groups.to_store(hashes), pool.pages.rows(host_indices, len(hashes))
        keys = _keys([part.name for part in parts])
        result = pool.jobs.run(
            lambda job: pool.shelf.submit_store(job, _chunks(keys, parts, rows)),
            self._settings.max_write_queued_seconds + self._settings.store_timeout_seconds,
        )
        if result is None:
            return [False] * len(hashes)
        full = [key for key, e in zip(keys, result.errnos, strict=True) if e in NO_ROOM]
        if full and self._eviction is not None:
            self._eviction.want_room(full)
        self._writing.saw([] if full else result.statuses)
        self._stats.count(metrics.STORE_BYTES, by=result.payload_bytes)
        self._stats.observe(metrics.STORE_SECONDS, result.seconds)
        for key, status, error in zip(keys, result.statuses, result.errnos, strict=True):
            if status is FileStatus.OK:
                self._stats.count(metrics.STORE_OUTCOMES, "published")
            else:
                cause = status.name.lower()
                self._stats.count(metrics.STORE_OUTCOMES, cause)
                self._faults.fault(f"store failed ({cause})", _described(key, error))
        self._show_gauges(pool)
        return _of_pages(parts, [status is FileStatus.OK for status in result.statuses])

    def _moved(self, move: Callable[..., list[bool]], transfer: PoolTransfer) -> list[bool]:
        """Load or store one pool's part; slots that do not fit its keys move nothing."""
        keys = transfer.keys or []
        try:
            return move(str(transfer.name), keys, transfer.host_indices)
        except (ValueError, AttributeError) as error:
            self._faults.fault(f"transfer of pool {transfer.name} refused", str(error))
            return [False] * len(keys)

    def _show_gauges(self, pool: _Pool) -> None:
        for name, labels, value in engine_gauges(pool.shelf.stats()):
            self._stats.gauge(name, value, *labels)


def _chunks(keys: Sequence[bytes], parts: Sequence[Part], rows: NDArray[Any]) -> list[Chunk]:
    return [
        Chunk(key, rows[part.begin : part.end], part.first_block)
        for key, part in zip(keys, parts, strict=True)
    ]


def _of_pages(parts: Sequence[Part], good: Sequence[bool]) -> list[bool]:
    """What is true of each part, for each of its pages."""
    return [ok for part, ok in zip(parts, good, strict=True) for _ in range(part.begin, part.end)]


def _described(key: bytes, error: int) -> str:
    return f"page {key[:8].hex()}" + (f", errno {error}" if error else "")
