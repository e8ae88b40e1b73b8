"""A shelf: chunks by key in a shared directory, or in several. Usable without vLLM.

    key -> root (rendezvous), path (layout) -> engine -> chunk file

Thread-safe where the engine is; one object is meant for one owner. Nothing waits for storage but
``wait``, ``drain``, ``close`` and the three conveniences ``store``, ``load`` and ``lookup``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kvshelf.disk.auth import key_id
from kvshelf.disk.keys import group_of, make_key
from kvshelf.disk.layout import chunk_path, chunk_path_in, rank_folder
from kvshelf.disk.namespace import Identity
from kvshelf.disk.rendezvous import Rendezvous, Share
from kvshelf.engine import (
    BatchBuilder,
    Engine,
    EngineConfig,
    EngineStats,
    FileStatus,
    GroupMemory,
    JobId,
    JobKind,
    JobResult,
    Phase,
)
from kvshelf.engine.arrays import as_block_ids, pages_of
from kvshelf.engine.spread import SpreadEngine
from kvshelf.opening import open_all

EngineFactory = Callable[..., Engine]
RootPath = str | os.PathLike[str]


class Chunk(NamedTuple):
    """A chunk, or a part of one, and where its blocks lie in block memory.

    Attributes:
        key: from ``kvshelf.make_key``; its group selects the group memory.
        block_ids: int32[n], rows of block memory for n consecutive blocks of the chunk; other
            integers, also a range or a list, are converted.
        first_block: index within the chunk of the first of them.
    """

    key: bytes
    block_ids: NDArray[np.int32] | Sequence[int]
    first_block: int = 0


def native_engine(*args: Any, **kwargs: Any) -> Engine:
    """The default engine. Imported when first used, so that tools without I/O need no extension."""
    from kvshelf.engine.native import NativeEngine  # noqa: PLC0415

    return NativeEngine(*args, **kwargs)


class Shelf:
    """Chunks of one namespace and one rank in a shelf's root, or in several.

    Args:
        root: absolute path; made a shelf if it is empty or absent (``disk.root.open_root``). Of
            several roots each chunk lies in one, which its key and their paths decide
            (``disk.rendezvous``).
        identity: everything that decides the bytes; engines with equal ones share, if their
            ``config.auth_key`` is the same.
        rank: whose files are stored, loaded and touched.
        world_size: number of ranks; a lookup finds a key only if every rank has it.
        groups: block memory; without any, only ``lookup`` and ``touch`` are possible, and ``touch``
            is for the files of every rank.
        group_ids: the group index in keys that each of ``groups`` is for; positions if left out.
        config: limits of the engine.
        device: where block memory lies, "cpu" or "cuda:N".
        engine: makes the engine; the native one by default.
        keep_alive: kept until the shelf is gone: whatever owns the block memory.

    Raises:
        ConfigError, NotAShelfError: the root or the namespace's folder cannot be used, or does not
            answer within ``config.open_timeout_seconds``.
        ValueError: rank, world_size or group_ids are impossible, or the engine refuses a setting.
    """

    def __init__(
        self,
        root: RootPath | Sequence[RootPath],
        identity: Identity,
        *,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[GroupMemory] = (),
        group_ids: Sequence[int] | None = None,
        config: EngineConfig | None = None,
        device: str = "cpu",
        engine: EngineFactory = native_engine,
        keep_alive: object = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of world_size {world_size}")
        ids = tuple(range(len(groups)) if group_ids is None else group_ids)
        if len(ids) != len(groups) or len(set(ids)) != len(ids):
            raise ValueError(
                f"group_ids {ids}: one a group, each its own, for {len(groups)} groups"
            )
        self._config = config or EngineConfig()
        modes = {"dir_mode": self._config.dir_mode, "file_mode": self._config.file_mode}
        if self._config.auth_key:
            identity = identity.with_field("auth_key", key_id(self._config.auth_key))
        opened = open_all(
            [root] if isinstance(root, str | os.PathLike) else root,
            identity,
            modes=modes | {"durability": self._config.durability.value},
            timeout_seconds=self._config.open_timeout_seconds,
        )
        self.roots = tuple(map(str, opened.roots))
        # Given up by close(), by the collector, and by the kernel however this process ends.
        self._uses = opened.uses
        self._end_use = weakref.finalize(self, opened.uses.close)
        self._route = Rendezvous(self.roots) if len(self.roots) > 1 else None
        self._folder = identity.folder
        self.rank = rank
        self._ranks = range(world_size)
        self._rank_folders = [rank_folder(identity.folder, each) for each in self._ranks]
        touched = (rank,) if groups else tuple(self._ranks)
        self._touched_folders = [self._rank_folders[each] for each in touched]
        self._position = {group: position for position, group in enumerate(ids)}
        self._own_jobs = itertools.count(-1, -1)
        more: dict[str, Any] = {"namespace": identity.digest, "rank": rank, "device": device}
        if self._route is None:
            self._engine = engine(self.roots[0], groups, self._config, **more)
        else:
            self._engine = SpreadEngine(self.roots, groups, self._config, engine=engine, **more)
        opened.set_clocks(self._engine)
        # Assigned last, so that it goes last when the shelf is collected without close(): the
        # engine's threads use the memory until the engine is gone.
        self._keep_alive = keep_alive

    @classmethod
    def of_arrays(
        cls,
        root: RootPath | Sequence[RootPath],
        identity: Identity,
        arrays: NDArray[Any] | Sequence[Sequence[NDArray[Any]]],
        **kwargs: Any,
    ) -> Self:
        """A shelf over NumPy memory: one array, or per group a list of one array a layer.

        Each array is [num_blocks, ...] with every block contiguous. Arrays are kept alive.

        Raises:
            ValueError: an array has no blocks, or blocks that are not contiguous, overlap, are
                read-only or hold Python objects; a group has no layers; a list of arrays is not
                nested in a list of groups.
        """
        nested = [[arrays]] if isinstance(arrays, np.ndarray) else arrays
        if any(isinstance(layers, np.ndarray) or not layers for layers in nested):
            raise ValueError(
                "give one array, or a list of groups, each a list of one array a layer"
            )
        groups = [
            GroupMemory(
                pages=tuple(pages_of(layer) for layer in layers),
                num_blocks=min(len(layer) for layer in layers),
            )
            for layers in nested
        ]
        return cls(root, identity, groups=groups, keep_alive=nested, **kwargs)

    @property
    def folder(self) -> str:
        """Name of the namespace's folder."""
        return self._folder

    def path_of(self, key: bytes) -> str:
        """Path of this rank's file of a chunk, relative to its root."""
        return chunk_path(self._folder, self.rank, key)

    def root_of(self, key: bytes) -> int:
        """The chunk's root, as an index into ``roots``."""
        return 0 if self._route is None else self._route.of_key(key)

    def shares(self, keys: Sequence[bytes], runs: Sequence[int] = ()) -> list[Share]:
        """The keys by root; a job of one share alone does not wait for the other roots."""
        if self._route is None:
            return [Share(0, np.arange(len(keys)), keys, runs)]
        return self._route.shares(keys, runs)

    def submit_store(self, job_id: JobId, chunks: Sequence[Chunk], stream: int = 0) -> None:
        """Queue a store; see ``Engine.submit_store``. Job ids are the caller's, not negative."""
        self._engine.submit_store(job_id, self._batch(chunks), stream)

    def submit_load(self, job_id: JobId, chunks: Sequence[Chunk], stream: int = 0) -> None:
        """Queue a load; see ``Engine.submit_load``."""
        self._engine.submit_load(job_id, self._batch(chunks), stream)

    def submit_lookup(
        self,
        job_id: JobId,
        keys: Sequence[bytes],
        runs: Sequence[int] = (),
        mask: bytes = b"",
    ) -> None:
        """Queue a lookup; its result has one status a key, OK only if every rank has the chunk.

        ``runs``, ``mask``: see ``Engine.submit_lookup_keys``.
        """
        self._engine.submit_lookup_keys(job_id, self._rank_folders, keys, runs, mask)

    def submit_probe(self, job_id: JobId, keys: Sequence[bytes], bytes_max: int) -> None:
        """Queue a measurement: up to ``bytes_max`` of each chunk's files, all ranks', are read."""
        files = [chunk_path_in(folder, key) for key in keys for folder in self._rank_folders]
        self._engine.submit_probe(job_id, files, bytes_max)

    def submit_ping(self, job_id: JobId, root: int) -> None:
        """Queue a probe of a name in this root that no cache can know: does it answer at all."""
        while self.root_of(make_key(name := secrets.token_bytes(16), 0)) != root:
            pass
        self._engine.submit_probe(job_id, [f"{self._folder}/{name.hex()}-g0.kv"], 0)

    def touch(self, keys: Sequence[bytes]) -> None:
        """Mark chunks as used now, in the background."""
        folders = self._touched_folders
        self._engine.touch([chunk_path_in(folder, key) for key in keys for folder in folders])

    def touch_at(
        self,
        keys: Sequence[bytes],
        times_ns: Sequence[int],
        *,
        always: bool = False,
        mask: bytes = b"",
    ) -> None:
        """Mark chunks as used at these times; see ``Engine.touch_keys``."""
        self._engine.touch_keys(self._touched_folders, keys, times_ns, always=always, mask=mask)

    def set_clock(self, root: int, ahead_ns: int) -> None:
        """See ``Engine.set_clock``."""
        self._engine.set_clock(ahead_ns, root)

    def renew_use(self, root: str) -> None:
        """As ``opening.Uses.renew``, in one of ``roots``. Threads: any; it waits for storage."""
        self._uses.renew(Path(root))

    def poll(self) -> list[JobResult]:
        """Reports since the last call; lookups of several ranks reduced to one status a key."""
        reports = self._engine.poll()
        if reports and len(self._ranks) > 1:
            return [self._reduced(report) for report in reports]
        return reports

    def wait(self, job_ids: Sequence[JobId], phase: Phase, timeout_seconds: float) -> bool:
        return self._engine.wait(job_ids, phase, timeout_seconds)

    def release(self, job_ids: Sequence[JobId]) -> None:
        self._engine.release(job_ids)

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        self._engine.cancel(job_ids)

    def drain(self, timeout_seconds: float) -> bool:
        return self._engine.drain(timeout_seconds)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def stats_of(self, root: int) -> EngineStats:
        """Those of one root."""
        engine = self._engine
        return engine.stats_of(root) if isinstance(engine, SpreadEngine) else engine.stats()

    def close(self, timeout_seconds: float = 5.0) -> bool:
        end = time.monotonic() + timeout_seconds
        is_closed = self._engine.close(timeout_seconds)
        # Even to close a file waits for storage that hangs. Without a thread: at exit.
        thread = threading.Thread(target=self._end_use, name="kvshelf-close", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter ends
            thread.start()
            thread.join(max(0.1, end - time.monotonic()))
        return is_closed

    def store(self, chunks: Sequence[Chunk]) -> list[FileStatus]:
        """Store and wait until every chunk is on the shelf or given up. Drops other reports."""
        if not chunks:
            return []
        limit = self._config.store_queue_seconds + self._config.store_timeout_seconds
        return self._run(lambda job: self.submit_store(job, chunks), limit)

    def load(self, chunks: Sequence[Chunk]) -> list[FileStatus]:
        """Load and wait. Drops other reports."""
        if not chunks:
            return []
        limit = self._config.load_timeout_seconds
        return self._run(lambda job: self.submit_load(job, chunks), limit)

    def lookup(self, keys: Sequence[bytes]) -> list[FileStatus]:
        """Look up and wait: OK or NOT_FOUND a key. Drops other reports."""
        if not keys:
            return []
        limit = self._config.lookup_timeout_seconds
        return self._run(lambda job: self.submit_lookup(job, keys), limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _batch(self, chunks: Sequence[Chunk]) -> Any:
        builder = BatchBuilder()
        folder, rank, position = self._folder, self.rank, self._position
        for key, block_ids, first_block in chunks:
            ids = as_block_ids(block_ids)
            # A group that this shelf has no memory for is refused by the engine, as any bad index.
            group = position.get(group_of(key), -1)
            builder.add(chunk_path(folder, rank, key), key, group, first_block, ids)
        return builder.build()

    def _run(self, submit: Callable[[JobId], None], limit_seconds: float) -> list[FileStatus]:
        job = next(self._own_jobs)
        submit(job)
        # The engine ends every job by its own deadline; the second is for it to say so.
        self._engine.wait([job], Phase.FINISHED, limit_seconds + 1.0)
        for report in self.poll():
            if report.job_id == job and report.phase is Phase.FINISHED:
                return list(report.statuses)
        raise TimeoutError(f"the engine did not report on job {job} in {limit_seconds + 1.0} s")

    def _reduced(self, report: JobResult) -> JobResult:
        if report.kind is not JobKind.LOOKUP:
            return report
        ranks = len(self._ranks)
        everywhere = (FileStatus.OK,) * ranks
        keys = len(report.statuses) // ranks
        statuses, errnos = [FileStatus.OK] * keys, [0] * keys
        for key in range(keys):
            row = report.statuses[key * ranks : (key + 1) * ranks]
            if row == everywhere:  # thousands of keys come by on a scheduler's thread
                continue
            # That a file is not there is known; that a probe failed or came too late says nothing.
            known = [each for each in (FileStatus.NOT_FOUND, FileStatus.CANCELLED) if each in row]
            worst = known[0] if known else max(row)
            statuses[key] = worst
            errnos[key] = report.errnos[key * ranks + row.index(worst)]
        return replace(report, statuses=tuple(statuses), errnos=tuple(errnos))
