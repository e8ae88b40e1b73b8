"""The engine's contract in plain Python: chunks in a dict, no files, no threads of its own.

It states what ``Engine`` (base.py) promises, and serves tests that need no storage. Jobs are done
when submitted; their reports wait for ``poll``. All methods may be called from any thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvshelf.disk.keys import masked_all
from kvshelf.disk.layout import chunk_path_in
from kvshelf.engine import (
    Batch,
    EngineConfig,
    EngineStats,
    FileStatus,
    GroupMemory,
    JobId,
    JobKind,
    JobResult,
    Phase,
)
from kvshelf.engine.check import (
    check_batch,
    check_lookup_keys,
    check_paths,
    check_store,
    check_touch_keys,
)
from kvshelf.errors import EngineClosedError


class _Stored(NamedTuple):
    """What a chunk file holds, in effect."""

    identity: tuple[object, ...]
    first_block: int
    blocks: tuple[bytes, ...]


class _Row(NamedTuple):
    """One file of a batch; ``identity`` is what its header says or must say."""

    path: str
    identity: tuple[object, ...]
    memory: GroupMemory
    first_block: int
    block_ids: list[int]


class MemoryEngine:
    """``Engine`` without storage.

    Args: as ``Engine``, and
        files: path -> what is stored there; share it between engines that stand for replicas.
            Anything that no engine put there reads as a damaged file.

    Raises:
        ValueError: a group or the namespace is out of range.
    """

    def __init__(
        self,
        root: str,
        groups: Sequence[GroupMemory],
        config: EngineConfig,
        *,
        namespace: bytes,
        rank: int,
        device: str = "cpu",
        files: dict[str, object] | None = None,
    ) -> None:
        del root, device
        if len(namespace) != 32:
            raise ValueError("namespace must have 32 bytes")
        for page in (page for group in groups for page in group.pages):
            if not 0 < page.page_bytes <= page.stride_bytes:
                raise ValueError(f"{page}: allowed are 0 < page_bytes <= stride_bytes")
        if not all(group.pages for group in groups):
            raise ValueError("a group needs at least one layer")
        self._groups = tuple(groups)
        self._config = config
        self._who = (namespace, rank)
        self._files: dict[str, object] = {} if files is None else files
        self._lock = threading.Lock()  # guards all below, and the files as far as they are ours
        self._reports: list[JobResult] = []
        self._removed_bad = 0
        self._stored_bytes = 0
        self._closed = False

    def submit_store(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        del stream
        check_store(batch, self._groups, self._config.piece_bytes)
        rows = self._rows(batch)
        with self._lock:
            self._begin(job_id)
            statuses, moved = [], 0
            for row in rows:
                statuses.append(self._there(row))
                if row.path not in self._files:  # a chunk that is there is never replaced
                    blocks = tuple(_read(row.memory, block) for block in row.block_ids)
                    self._files[row.path] = _Stored(row.identity, row.first_block, blocks)
                    statuses[-1] = FileStatus.OK
                    moved += len(row.block_ids) * row.memory.block_bytes
            self._stored_bytes += moved
            for phase in (Phase.RELEASED, Phase.FINISHED):
                self._report(job_id, JobKind.STORE, phase, statuses, moved)

    def submit_load(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        del stream
        check_batch(batch, self._groups)
        rows = self._rows(batch)
        with self._lock:
            self._begin(job_id)
            statuses = [self._load(row) for row in rows]
            moved = sum(
                len(row.block_ids) * row.memory.block_bytes
                for row, status in zip(rows, statuses, strict=True)
                if status is FileStatus.OK
            )
            self._report(job_id, JobKind.LOAD, Phase.FINISHED, statuses, moved)

    def submit_lookup(self, job_id: JobId, paths: Sequence[str]) -> None:
        if not paths:
            raise ValueError("a lookup needs at least one path")
        check_paths(paths)
        with self._lock:
            self._begin(job_id)
            found = [FileStatus.OK if p in self._files else FileStatus.NOT_FOUND for p in paths]
            self._report(job_id, JobKind.LOOKUP, Phase.FINISHED, found, 0)

    def submit_lookup_keys(
        self,
        job_id: JobId,
        folders: Sequence[str],
        keys: Sequence[bytes],
        runs: Sequence[int] = (),
        mask: bytes = b"",
    ) -> None:
        """See ``Engine.submit_lookup_keys``. Nothing is left out here: it costs nothing."""
        check_lookup_keys(folders, keys, runs, mask)
        stored = masked_all(keys, mask)
        self.submit_lookup(job_id, [chunk_path_in(f, key) for key in stored for f in folders])

    def submit_probe(self, job_id: JobId, paths: Sequence[str], bytes_max: int) -> None:
        """See ``Engine.submit_probe``. A file has the bytes of its blocks."""
        if not paths:
            raise ValueError("a probe needs at least one path")
        check_paths(paths)
        with self._lock:
            self._begin(job_id)
            files = [self._files.get(path) for path in paths]
            sizes = [sum(map(len, f.blocks)) for f in files if isinstance(f, _Stored)]
            found = [FileStatus.NOT_FOUND if f is None else FileStatus.OK for f in files]
            moved = sum(min(size, bytes_max) for size in sizes)
            self._report(job_id, JobKind.PROBE, Phase.FINISHED, found, moved)

    def touch(self, paths: Sequence[str]) -> None:
        """See ``Engine.touch``. There is nobody here who would look at times of use."""
        check_paths(paths)
        if self._closed:
            raise EngineClosedError("the engine is closed")

    def touch_keys(
        self,
        folders: Sequence[str],
        keys: Sequence[bytes],
        times_ns: Sequence[int],
        *,
        always: bool = False,
        mask: bytes = b"",
    ) -> None:
        """See ``Engine.touch_keys``. Likewise."""
        del always
        check_touch_keys(folders, keys, times_ns, mask)
        self.touch(folders)

    def set_clock(self, ahead_ns: int) -> None:
        """See ``Engine.set_clock``. Nothing here has times."""

    def poll(self) -> list[JobResult]:
        with self._lock:
            reports, self._reports = self._reports, []
        return reports

    def wait(self, job_ids: Sequence[JobId], phase: Phase, timeout_seconds: float) -> bool:
        """See ``Engine.wait``: jobs are done when submitted."""
        del job_ids, phase, timeout_seconds
        return True

    def release(self, job_ids: Sequence[JobId]) -> None:
        """See ``Engine.release``: bytes are taken when submitted."""

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        """See ``Engine.cancel``: nothing ever waits to begin."""

    def drain(self, timeout_seconds: float) -> bool:
        del timeout_seconds
        return True

    def stats(self) -> EngineStats:
        stored = self._stored_bytes
        return EngineStats(
            removed_bad=self._removed_bad, stored_payload_bytes=stored, stored_file_bytes=stored
        )

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """See ``Engine.close``. Reports that were not polled may still be."""
        del timeout_seconds
        with self._lock:
            self._closed = True
        return True

    def _begin(self, job_id: JobId) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed")
        if any(report.job_id == job_id for report in self._reports):
            raise ValueError(f"job id {job_id} is in use")

    def _load(self, row: _Row) -> FileStatus:
        """What a reader finds, in the order of docs/format.md."""
        status = self._there(row)
        if status is FileStatus.OK:
            stored = self._files[row.path]
            assert isinstance(stored, _Stored)
            wanted = stored.blocks[row.first_block - stored.first_block :]
            for block, data in zip(row.block_ids, wanted, strict=False):
                _write(row.memory, block, data)
        return status

    def _there(self, row: _Row) -> FileStatus:
        """Whether the wanted chunk has the path. A bad file is removed, to be stored anew."""
        stored = self._files.get(row.path)
        if stored is None:
            return FileStatus.NOT_FOUND
        if not isinstance(stored, _Stored):
            status = FileStatus.CORRUPT
        elif stored.identity != row.identity:
            status = FileStatus.FOREIGN
        else:
            start = row.first_block - stored.first_block
            if start >= 0 and start + len(row.block_ids) <= len(stored.blocks):
                return FileStatus.OK
            status = FileStatus.NOT_FOUND
        if self._config.remove_bad:
            del self._files[row.path]
            self._removed_bad += 1
        return status

    def _rows(self, batch: Batch) -> list[_Row]:
        ends = np.cumsum(batch.block_counts)
        return [self._row(batch, index, int(end)) for index, end in enumerate(ends)]

    def _row(self, batch: Batch, index: int, end: int) -> _Row:
        memory = self._groups[batch.groups[index]]
        ids = batch.block_ids[end - batch.block_counts[index] : end].tolist()
        geometry = tuple(page.page_bytes for page in memory.pages)
        identity = (self._who, batch.keys[index], geometry)
        return _Row(batch.paths[index], identity, memory, int(batch.first_blocks[index]), ids)

    def _report(
        self, job_id: JobId, kind: JobKind, phase: Phase, statuses: list[FileStatus], moved: int
    ) -> None:
        zeros = (0,) * len(statuses)
        self._reports.append(JobResult(job_id, kind, phase, tuple(statuses), zeros, moved, 0.0))


def _read(memory: GroupMemory, block: int) -> bytes:
    return b"".join(
        ctypes.string_at(page.address + block * page.stride_bytes, page.page_bytes)
        for page in memory.pages
    )


def _write(memory: GroupMemory, block: int, data: bytes) -> None:
    offset = 0
    for page in memory.pages:
        address = page.address + block * page.stride_bytes
        ctypes.memmove(address, data[offset : offset + page.page_bytes], page.page_bytes)
        offset += page.page_bytes
