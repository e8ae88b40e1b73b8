"""The engine's contract in a hundred lines: chunks in a dict, no threads, no files.

It states what ``Engine`` (base.py) promises, and serves tests that need no storage. Jobs are done
when submitted; their reports wait for ``poll``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from kvshelf.engine.base import (
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
from kvshelf.errors import EngineClosedError
from kvshelf.keys import KEY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a chunk file holds, in effect."""

    identity: tuple[object, ...]
    first_block: int
    blocks: tuple[bytes, ...]


class MemoryEngine:
    """``Engine`` without storage. One thread at a time.

    Args: as ``Engine``; ``files`` may be shared by engines that stand for replicas.
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
        del root, config, device
        self._groups = tuple(groups)
        self._who = (namespace, rank)
        self._files: dict[str, object] = {} if files is None else files
        self._reports: list[JobResult] = []
        self._closed = False

    def submit_store(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        del stream
        rows = self._rows(job_id, batch)
        moved = 0
        for path, identity, memory, first, ids in rows:
            if path not in self._files:
                blocks = tuple(_read(memory, block) for block in ids)
                self._files[path] = _Stored(identity, first, blocks)
                moved += sum(map(len, blocks))
        for phase in Phase:
            self._report(job_id, JobKind.STORE, phase, [FileStatus.OK] * len(rows), moved)

    def submit_load(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        del stream
        statuses, moved = [], 0
        for path, identity, memory, first, ids in self._rows(job_id, batch):
            stored = self._files.get(path)
            status = _judge(stored, identity, first, len(ids))
            if status is FileStatus.OK and isinstance(stored, _Stored):
                start = first - stored.first_block
                for block, data in zip(ids, stored.blocks[start:], strict=False):
                    _write(memory, block, data)
                    moved += len(data)
            statuses.append(status)
        self._report(job_id, JobKind.LOAD, Phase.FINISHED, statuses, moved)

    def submit_lookup(self, job_id: JobId, paths: Sequence[str]) -> None:
        self._open(job_id)
        if not paths:
            raise ValueError("a lookup needs at least one path")
        found = [FileStatus.OK if p in self._files else FileStatus.NOT_FOUND for p in paths]
        self._report(job_id, JobKind.LOOKUP, Phase.FINISHED, found, 0)

    def touch(self, paths: Sequence[str]) -> None:
        del paths
        if self._closed:
            raise EngineClosedError("the engine is closed")

    def poll(self) -> list[JobResult]:
        reports, self._reports = self._reports, []
        return reports

    def wait(self, job_ids: Sequence[JobId], phase: Phase, timeout_seconds: float) -> bool:
        del job_ids, phase, timeout_seconds
        return True  # jobs are done when submitted

    def release(self, job_ids: Sequence[JobId]) -> None:
        del job_ids

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        del job_ids

    def drain(self, timeout_seconds: float) -> bool:
        del timeout_seconds
        return True

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self, timeout_seconds: float = 5.0) -> bool:
        del timeout_seconds
        self._closed = True
        return True

    def _open(self, job_id: JobId) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed")
        if any(report.job_id == job_id for report in self._reports):
            raise ValueError(f"job id {job_id} is in use")

    def _rows(
        self, job_id: JobId, batch: Batch
    ) -> list[tuple[str, tuple[object, ...], GroupMemory, int, list[int]]]:
        """The batch, checked before anything of it is done."""
        self._open(job_id)
        counts = batch.block_counts.tolist()
        columns = (batch.keys, batch.groups, batch.first_blocks, batch.block_counts)
        if not batch.paths or any(len(column) != len(batch.paths) for column in columns):
            raise ValueError("columns are empty or of different lengths")
        if min(counts) < 1 or sum(counts) != len(batch.block_ids):
            raise ValueError("block_counts are below 1 or do not add up to block_ids")
        rows: list[tuple[str, tuple[object, ...], GroupMemory, int, list[int]]] = []
        start = 0
        for path, key, group, first, count in zip(
            batch.paths,
            batch.keys,
            batch.groups.tolist(),
            batch.first_blocks.tolist(),
            counts,
            strict=True,
        ):
            ids = batch.block_ids[start : start + count].tolist()
            start += count
            if path.startswith("/") or not path or ".." in path.split("/"):
                raise ValueError(f"path {path!r} is not beneath the root")
            if not 12 <= len(key) <= KEY_BYTES_MAX or first < 0:
                raise ValueError("a key has 12 to 128 bytes, and first blocks start at 0")
            if not 0 <= group < len(self._groups):
                raise ValueError(f"group {group} is out of range")
            memory = self._groups[group]
            if min(ids) < 0 or max(ids) >= memory.num_blocks:
                raise ValueError("a block id is out of range")
            geometry = tuple(page.page_bytes for page in memory.pages)
            rows.append((path, (self._who, key, geometry), memory, first, ids))
        return rows

    def _report(
        self, job_id: JobId, kind: JobKind, phase: Phase, statuses: list[FileStatus], moved: int
    ) -> None:
        zeros = (0,) * len(statuses)
        self._reports.append(JobResult(job_id, kind, phase, tuple(statuses), zeros, moved, 0.0))


def _judge(stored: object, identity: tuple[object, ...], first: int, count: int) -> FileStatus:
    """What a reader finds, in the order of docs/format.md."""
    if stored is None:
        return FileStatus.NOT_FOUND
    if not isinstance(stored, _Stored):
        return FileStatus.CORRUPT
    if stored.identity != identity:
        return FileStatus.FOREIGN
    start = first - stored.first_block
    whole = start >= 0 and start + count <= len(stored.blocks)
    return FileStatus.OK if whole else FileStatus.NOT_FOUND


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
