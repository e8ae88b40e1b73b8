"""An engine over one engine a root: each chunk file lies in the root that its name decides.

    submit -> parts, one a root -> engines -> poll -> one report a job

Every root has threads, queues and staging memory of its own, so that one that hangs takes nothing
from the others. A job reports when all of its parts have: who does not want to wait for a root
submits its share as a job of its own (``Rendezvous.shares``).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvshelf.disk.keys import masked_all
from kvshelf.disk.rendezvous import Rendezvous
from kvshelf.engine.base import (
    Batch,
    Engine,
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
from kvshelf.engine.config import EngineConfig
from kvshelf.errors import EngineClosedError

Rows = NDArray[np.intp]
# Hands one part of a job to its engine.
Submit = Callable[[Engine], None]


@dataclass(slots=True)
class _Job:
    """A job that has not been reported as FINISHED.

    Attributes:
        parts: by root, the rows of the job that it has.
        reports: of the parts, by phase and root, until all are there.
    """

    kind: JobKind
    size: int
    parts: dict[int, Rows]
    reports: dict[Phase, dict[int, JobResult]] = field(
        default_factory=lambda: {phase: {} for phase in Phase}
    )


class SpreadEngine:
    """The contract is ``kvshelf.engine.base.Engine``; its limits are the sum of the roots'.

    Args:
        roots: existing directories; their paths name them (``kvshelf.disk.rendezvous``).
        config: for all roots together: threads, queues and staging memory are divided.
        engine: makes the engine of one root; called with the arguments of ``Engine``.
        namespace, rank, device, groups: as ``Engine``.

    Raises:
        what ``engine`` raises.
    """

    def __init__(
        self,
        roots: Sequence[str],
        groups: Sequence[GroupMemory],
        config: EngineConfig,
        *,
        engine: Callable[..., Engine],
        namespace: bytes,
        rank: int,
        device: str = "cpu",
    ) -> None:
        self._route = Rendezvous(roots)
        self._groups = tuple(groups)
        self._piece_bytes = config.piece_bytes
        self._lock = threading.Lock()  # guards the two below; no call under it waits for storage
        self._jobs: dict[JobId, _Job] = {}
        self._closed = False
        self._engines: list[Engine] = []
        try:
            for root, share in zip(roots, divided(config, len(roots)), strict=True):
                made = engine(root, groups, share, namespace=namespace, rank=rank, device=device)
                self._engines.append(made)
        except BaseException:
            for made in self._engines:
                made.close(0.0)
            raise

    def submit_store(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        """See ``Engine.submit_store``."""
        check_store(batch, self._groups, self._piece_bytes)
        self._submit_batch(JobKind.STORE, job_id, batch, stream)

    def submit_load(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        """See ``Engine.submit_load``."""
        check_batch(batch, self._groups)
        self._submit_batch(JobKind.LOAD, job_id, batch, stream)

    def submit_lookup(self, job_id: JobId, paths: Sequence[str]) -> None:
        """See ``Engine.submit_lookup``."""
        parts = self._parts_of(paths)

        def submit(rows: Rows) -> Submit:
            part = [paths[row] for row in rows]
            return lambda engine: engine.submit_lookup(job_id, part)

        self._submit(JobKind.LOOKUP, job_id, parts, {r: submit(rows) for r, rows in parts.items()})

    def submit_lookup_keys(
        self,
        job_id: JobId,
        folders: Sequence[str],
        keys: Sequence[bytes],
        runs: Sequence[int] = (),
        mask: bytes = b"",
    ) -> None:
        """See ``Engine.submit_lookup_keys``. Each root stops behind its own first missing key."""
        check_lookup_keys(folders, keys, runs, mask)
        keys = masked_all(keys, mask)  # which root has a chunk goes by its own key
        parts: dict[int, Rows] = {}
        calls: dict[int, Submit] = {}
        each = np.arange(len(folders))
        for share in self._route.shares(keys, runs):
            parts[share.root] = (share.rows[:, np.newaxis] * len(folders) + each).ravel()
            calls[share.root] = lambda engine, share=share: engine.submit_lookup_keys(  # type: ignore[misc]
                job_id, folders, share.keys, share.runs
            )
        self._submit(JobKind.LOOKUP, job_id, parts, calls)

    def submit_probe(self, job_id: JobId, paths: Sequence[str], bytes_max: int) -> None:
        """See ``Engine.submit_probe``."""
        parts = self._parts_of(paths)

        def submit(rows: Rows) -> Submit:
            part = [paths[row] for row in rows]
            return lambda engine: engine.submit_probe(job_id, part, bytes_max)

        self._submit(JobKind.PROBE, job_id, parts, {r: submit(rows) for r, rows in parts.items()})

    def touch(self, paths: Sequence[str]) -> None:
        """See ``Engine.touch``."""
        check_paths(paths)
        self._check_open()
        for root, rows in _by_root(self._route.of_paths(paths)).items():
            self._engines[root].touch([paths[row] for row in rows])

    def touch_keys(
        self,
        folders: Sequence[str],
        keys: Sequence[bytes],
        times_ns: Sequence[int],
        *,
        always: bool = False,
        mask: bytes = b"",
    ) -> None:
        """See ``Engine.touch_keys``."""
        check_touch_keys(folders, keys, times_ns, mask)
        self._check_open()
        keys = masked_all(keys, mask)
        for share in self._route.shares(keys):
            times = [times_ns[row] for row in share.rows]
            self._engines[share.root].touch_keys(folders, share.keys, times, always=always)

    def set_clock(self, ahead_ns: int, root: int = 0) -> None:
        """See ``Engine.set_clock``."""
        self._engines[root].set_clock(ahead_ns)

    def poll(self) -> list[JobResult]:
        """See ``Engine.poll``."""
        with self._lock:
            return [
                merged
                for root, engine in enumerate(self._engines)
                for report in engine.poll()
                if (merged := self._merged(root, report)) is not None
            ]

    def wait(self, job_ids: Sequence[JobId], phase: Phase, timeout_seconds: float) -> bool:
        """See ``Engine.wait``. One root after the other: meanwhile the others go on."""
        left = _countdown(timeout_seconds)
        return all(engine.wait(job_ids, phase, left()) for engine in self._engines)

    def release(self, job_ids: Sequence[JobId]) -> None:
        """See ``Engine.release``."""
        for engine in self._engines:
            engine.release(job_ids)

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        """See ``Engine.cancel``."""
        for engine in self._engines:
            engine.cancel(job_ids)

    def drain(self, timeout_seconds: float) -> bool:
        """See ``Engine.drain``."""
        left = _countdown(timeout_seconds)
        return all(engine.drain(left()) for engine in self._engines)

    def stats(self) -> EngineStats:
        """See ``Engine.stats``: the sum; ``direct`` if it is in use in every root."""
        all_stats = [engine.stats() for engine in self._engines]
        sums = {
            each.name: sum(getattr(stats, each.name) for stats in all_stats)
            for each in dataclasses.fields(EngineStats)
        }
        return EngineStats(**{**sums, "direct": all(stats.direct for stats in all_stats)})

    def stats_of(self, root: int) -> EngineStats:
        """Those of one root."""
        return self._engines[root].stats()

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """See ``Engine.close``. What a root has begun may end while another one is waited for."""
        left = _countdown(timeout_seconds)
        with self._lock:
            self._closed = True
            jobs = list(self._jobs)
        self.cancel(jobs)
        self.wait(jobs, Phase.FINISHED, left())
        closed = [engine.close(left()) for engine in self._engines]
        return all(closed)

    def _submit_batch(self, kind: JobKind, job_id: JobId, batch: Batch, stream: int) -> None:
        parts = _by_root(self._route.of_paths(batch.paths))
        ends: Rows = np.cumsum(batch.block_counts, dtype=np.intp)

        def submit(rows: Rows) -> Submit:
            part = _part(batch, rows, ends)
            if kind is JobKind.STORE:
                return lambda engine: engine.submit_store(job_id, part, stream)
            return lambda engine: engine.submit_load(job_id, part, stream)

        self._submit(kind, job_id, parts, {r: submit(rows) for r, rows in parts.items()})

    def _parts_of(self, paths: Sequence[str]) -> dict[int, Rows]:
        if not paths:
            raise ValueError("a lookup or a probe needs at least one path")
        check_paths(paths)
        return _by_root(self._route.of_paths(paths))

    def _submit(
        self,
        kind: JobKind,
        job_id: JobId,
        parts: dict[int, Rows],
        calls: Mapping[int, Submit],
    ) -> None:
        """Hand a job's parts out. Arguments were checked: what an engine refuses all the same, when
        another has taken its part already, is CANCELLED there."""
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            if job_id in self._jobs:
                raise ValueError(f"job id {job_id} is in use")
            refused: dict[int, Exception] = {}
            for root, call in calls.items():
                try:
                    call(self._engines[root])
                except Exception as error:
                    refused[root] = error
            if len(refused) == len(calls):
                raise next(iter(refused.values()))
            job = _Job(kind, sum(map(len, parts.values())), parts)
            for root in refused:
                statuses = (FileStatus.CANCELLED,) * len(parts[root])
                for phase in Phase:
                    report = JobResult(job_id, kind, phase, statuses, (0,) * len(statuses), 0, 0.0)
                    job.reports[phase][root] = report
            self._jobs[job_id] = job

    def _merged(self, root: int, report: JobResult) -> JobResult | None:
        """The job's report, if this was the last part of it that was missing."""
        job = self._jobs[report.job_id]
        reports = job.reports[report.phase]
        reports[root] = report
        if len(reports) < len(job.parts):
            return None
        if report.phase is Phase.FINISHED:
            del self._jobs[report.job_id]
        statuses, errnos = np.empty(job.size, dtype=object), np.zeros(job.size, dtype=np.int64)
        for part, rows in job.parts.items():
            statuses[rows] = reports[part].statuses
            errnos[rows] = reports[part].errnos
        return dataclasses.replace(
            report,
            statuses=tuple(statuses.tolist()),
            errnos=tuple(errnos.tolist()),
            payload_bytes=sum(each.payload_bytes for each in reports.values()),
            seconds=max(each.seconds for each in reports.values()),
        )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed")


def divided(config: EngineConfig, parts: int) -> list[EngineConfig]:
    """A configuration's threads, queues and staging memory in parts, the first ones the larger."""

    def part(total: int, index: int) -> int:
        return max(1, total // parts + (index < total % parts))

    return [
        dataclasses.replace(
            config,
            io_threads=part(config.io_threads, index),
            load_only_threads=min(config.load_only_threads, part(config.load_only_threads, index)),
            lookup_threads=part(config.lookup_threads, index),
            write_buffer_bytes=max(config.piece_bytes, config.write_buffer_bytes // parts),
            queue_files=part(config.queue_files, index),
            touch_queue_files=part(config.touch_queue_files, index),
        )
        for index in range(parts)
    ]


def _by_root(roots: NDArray[np.intp]) -> dict[int, Rows]:
    return {root: np.flatnonzero(roots == root) for root in np.unique(roots).tolist()}


def _part(batch: Batch, rows: Rows, ends: Rows) -> Batch:
    counts = batch.block_counts[rows]
    # Of each row the position of its first block, and behind it those of the others.
    starts = (ends[rows] - counts).repeat(counts)
    within = np.arange(len(starts)) - (np.cumsum(counts) - counts).repeat(counts)
    return Batch(
        paths=[batch.paths[row] for row in rows],
        keys=[batch.keys[row] for row in rows],
        groups=batch.groups[rows],
        first_blocks=batch.first_blocks[rows],
        block_counts=counts,
        block_ids=batch.block_ids[starts + within],
    )


def _countdown(seconds: float) -> Callable[[], float]:
    """What is left of so many seconds from now on."""
    end = time.monotonic() + seconds
    return lambda: max(0.0, end - time.monotonic())
