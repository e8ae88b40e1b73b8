"""A shelf: chunks by key in a shared directory, or in several. Usable without vLLM.

    key -> root (rendezvous), path (layout) -> that root's engine -> chunk file

Every root has an engine of its own, so that one that hangs takes nothing from the others. A job
reports when all of its roots have. A caller that must not wait for one submits each of the keys'
``shares`` as a job of its own.

Thread-safe where the engines are; one object is meant for one owner. Nothing waits for storage but
``wait``, ``drain``, ``close`` and the three conveniences ``store``, ``load`` and ``lookup``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kvshelf.disk.auth import key_id
from kvshelf.disk.keys import group_of, masked_all
from kvshelf.disk.layout import chunk_path, chunk_path_in, rank_folder
from kvshelf.disk.namespace import Identity
from kvshelf.disk.rendezvous import Rendezvous, Share
from kvshelf.engine import (
    Batch,
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
from kvshelf.engine.arrays import as_block_ids, groups_of
from kvshelf.engine.check import check_batch, check_lookup_keys, check_store, check_touch_keys
from kvshelf.engine.parts import Jobs, Part, countdown, open_engines, total
from kvshelf.opening import open_all

EngineFactory = Callable[..., Engine]
RootPath = str | os.PathLike[str]
# Of a job: each root that has a part of it, and which of its chunks, by index.
Routes = Sequence[tuple[int, Sequence[int]]]


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
        config: limits of the engines of all roots together: threads, queues and staging memory are
            divided.
        device: where block memory lies, "cpu" or "cuda:N".
        engine: makes the engine of a root; the native one by default.
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
        self._route = Rendezvous(self.roots)
        self._folder = identity.folder
        self.rank = rank
        self._rank_folders = [rank_folder(identity.folder, each) for each in range(world_size)]
        self._touched_folders = [self._rank_folders[rank]] if groups else self._rank_folders
        self._position = {group: position for position, group in enumerate(ids)}
        self._own_jobs = itertools.count(-1, -1)
        self._groups = tuple(groups)
        more: dict[str, Any] = {"namespace": identity.digest, "rank": rank, "device": device}
        self._engines = open_engines(engine, self.roots, self._groups, self._config, **more)
        # One, as nearly everywhere: its jobs are neither split nor joined.
        self._only = self._engines[0] if len(self._engines) == 1 else None
        self._jobs = Jobs(self._engines, ranks=world_size)
        for index, reading in enumerate(opened.clocks):
            if reading is not None:
                self.set_clock(index, reading.ahead_ns)
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
        nested, groups = groups_of(arrays)
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
        return self._route.of_key(key)

    def shares(self, keys: Sequence[bytes], runs: Sequence[int] = ()) -> list[Share]:
        """The keys by root; a job of one share alone does not wait for the other roots.

        Raises:
            ValueError: a key is too short.
        """
        return self._route.shares(keys, runs)

    def submit_store(self, job_id: JobId, chunks: Sequence[Chunk], stream: int = 0) -> Routes:
        """Queue a store; see ``Engine.submit_store``. Job ids are the caller's, not negative.

        Returns:
            which root has which chunks.
        """
        if self._only is None:
            return self._split(JobKind.STORE, job_id, chunks, stream)
        self._only.submit_store(job_id, self._batch(chunks), stream)
        return [(0, range(len(chunks)))]

    def submit_load(self, job_id: JobId, chunks: Sequence[Chunk], stream: int = 0) -> Routes:
        """Queue a load; see ``Engine.submit_load``. Returns as ``submit_store``."""
        if self._only is None:
            return self._split(JobKind.LOAD, job_id, chunks, stream)
        self._only.submit_load(job_id, self._batch(chunks), stream)
        return [(0, range(len(chunks)))]

    def submit_lookup(
        self,
        job_id: JobId,
        keys: Sequence[bytes],
        runs: Sequence[int] = (),
        mask: bytes = b"",
        root: int | None = None,
    ) -> None:
        """Queue a lookup; its result has one status a key, OK only if every rank has the chunk.

        ``runs``, ``mask``: see ``Engine.submit_lookup_keys``; each root stops behind its own first
        missing key. ``root``: of all the keys, as ``shares`` said; it is not asked for again.
        """
        folders = self._rank_folders
        if self._only is not None:
            self._only.submit_lookup_keys(job_id, folders, keys, runs, mask)
            return
        if root is None:
            check_lookup_keys(folders, keys, runs, mask)
            shares, mask = self.shares(masked_all(keys, mask), runs), b""
        else:
            shares = [Share(root, np.arange(len(keys)), keys, runs)]
        parts = {}
        for each in shares:
            call = methodcaller("submit_lookup_keys", job_id, folders, each.keys, each.runs, mask)
            parts[each.root] = Part(each.rows, call)
        self._jobs.submit(job_id, JobKind.LOOKUP, parts)

    def submit_probe(self, job_id: JobId, keys: Sequence[bytes], bytes_max: int) -> None:
        """Queue a measurement: up to ``bytes_max`` of each chunk's files, all ranks', are read."""
        parts, ranks = {}, np.arange(len(self._rank_folders))
        for share in self.shares(keys):
            files = [chunk_path_in(each, key) for key in share.keys for each in self._rank_folders]
            rows = (share.rows[:, np.newaxis] * len(ranks) + ranks).ravel()
            parts[share.root] = Part(rows, methodcaller("submit_probe", job_id, files, bytes_max))
        self._jobs.submit(job_id, JobKind.PROBE, parts)

    def submit_ping(self, job_id: JobId, root: int) -> None:
        """Queue a probe of a name in this root that no cache can know: does it answer at all."""
        name = f"{self._folder}/{secrets.token_hex(16)}-g0.kv"
        part = Part(np.arange(1), methodcaller("submit_probe", job_id, [name], 0))
        self._jobs.submit(job_id, JobKind.PROBE, {root: part})

    def touch(self, keys: Sequence[bytes]) -> None:
        """Mark chunks as used now, in the background."""
        folders = self._touched_folders
        for share in self.shares(keys):
            paths = [chunk_path_in(folder, key) for key in share.keys for folder in folders]
            self._engines[share.root].touch(paths)

    def touch_at(
        self,
        keys: Sequence[bytes],
        times_ns: Sequence[int],
        *,
        always: bool = False,
        mask: bytes = b"",
    ) -> None:
        """Mark chunks as used at these times; see ``Engine.touch_keys``."""
        folders = self._touched_folders
        if self._only is not None:
            self._only.touch_keys(folders, keys, times_ns, always=always, mask=mask)
            return
        check_touch_keys(folders, keys, times_ns, mask)
        for share in self.shares(masked_all(keys, mask)):
            times = [times_ns[row] for row in share.rows.tolist()]
            self._engines[share.root].touch_keys(folders, share.keys, times, always=always)

    def set_clock(self, root: int, ahead_ns: int) -> None:
        """See ``Engine.set_clock``."""
        self._engines[root].set_clock(ahead_ns)

    def renew_use(self, root: str) -> None:
        """As ``opening.Uses.renew``, in one of ``roots``. Threads: any; it waits for storage."""
        self._uses.renew(Path(root))

    def poll(self) -> list[JobResult]:
        """Reports since the last call; lookups of several ranks reduced to one status a key."""
        return self._jobs.poll()

    def wait(self, job_ids: Sequence[JobId], phase: Phase, timeout_seconds: float) -> bool:
        left = countdown(timeout_seconds)
        return all(engine.wait(job_ids, phase, left()) for engine in self._engines)

    def release(self, job_ids: Sequence[JobId]) -> None:
        for engine in self._engines:
            engine.release(job_ids)

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        for engine in self._engines:
            engine.cancel(job_ids)

    def drain(self, timeout_seconds: float) -> bool:
        left = countdown(timeout_seconds)
        return all(engine.drain(left()) for engine in self._engines)

    def stats(self) -> EngineStats:
        return total([engine.stats() for engine in self._engines])

    def stats_of(self, root: int) -> EngineStats:
        """Those of one root."""
        return self._engines[root].stats()

    def close(self, timeout_seconds: float = 5.0) -> bool:
        left = countdown(timeout_seconds)
        if len(self._engines) > 1:  # what a root has begun ends while another one is waited for
            jobs = self._jobs.unfinished()
            self.cancel(jobs)
            self.wait(jobs, Phase.FINISHED, left())
        closed = [engine.close(left()) for engine in self._engines]
        # Even to close a file waits for storage that hangs. Without a thread: at exit.
        thread = threading.Thread(target=self._end_use, name="kvshelf-close", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter ends
            thread.start()
            thread.join(max(0.1, left()))
        return all(closed)

    def store(self, chunks: Sequence[Chunk]) -> list[FileStatus]:
        """Store and wait until every chunk is on the shelf or given up. Drops other reports."""
        limit = self._config.store_queue_seconds + self._config.store_timeout_seconds
        return self._run(self.submit_store, chunks, limit)

    def load(self, chunks: Sequence[Chunk]) -> list[FileStatus]:
        """Load and wait. Drops other reports."""
        return self._run(self.submit_load, chunks, self._config.load_timeout_seconds)

    def lookup(self, keys: Sequence[bytes]) -> list[FileStatus]:
        """Look up and wait: OK or NOT_FOUND a key. Drops other reports."""
        return self._run(self.submit_lookup, keys, self._config.lookup_timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _split(self, kind: JobKind, job_id: JobId, chunks: Sequence[Chunk], stream: int) -> Routes:
        parts: dict[int, Part] = {}
        routes: list[tuple[int, list[int]]] = []
        shares = self.shares([chunk[0] for chunk in chunks])
        for share in shares:
            rows = share.rows.tolist()
            batch = self._batch([chunks[row] for row in rows])
            # None is queued if one is bad; of a single one its engine sees to that.
            if len(shares) > 1 and kind is JobKind.STORE:
                check_store(batch, self._groups, self._config.piece_bytes)
            elif len(shares) > 1:
                check_batch(batch, self._groups)
            call = methodcaller(f"submit_{kind.value}", job_id, batch, stream)
            parts[share.root] = Part(share.rows, call)
            routes.append((share.root, rows))
        self._jobs.submit(job_id, kind, parts)
        return routes

    def _batch(self, chunks: Sequence[Chunk]) -> Batch:
        builder = BatchBuilder()
        folder, rank, position = self._folder, self.rank, self._position
        for key, block_ids, first_block in chunks:
            ids = as_block_ids(block_ids)
            # A group that this shelf has no memory for is refused by the engine, as any bad index.
            group = position.get(group_of(key), -1)
            builder.add(chunk_path(folder, rank, key), key, group, first_block, ids)
        return builder.build()

    def _run(
        self, submit: Callable[[JobId, Any], object], work: Sequence[Any], limit_seconds: float
    ) -> list[FileStatus]:
        if not work:
            return []
        job = next(self._own_jobs)
        submit(job, work)
        # The engine ends every job by its own deadline; the second is for it to say so.
        self.wait([job], Phase.FINISHED, limit_seconds + 1.0)
        for report in self.poll():
            if report.job_id == job and report.phase is Phase.FINISHED:
                return list(report.statuses)
        raise TimeoutError(f"the engine did not report on job {job} in {limit_seconds + 1.0} s")
