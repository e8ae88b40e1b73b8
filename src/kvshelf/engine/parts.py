"""Jobs in parts: what is asked of several roots reports once, when all of them have.

    job -> Jobs.submit -> parts, one a root -> engines -> reports -> Jobs.poll -> one report a job

Threads: any; nothing here waits for storage.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvshelf.engine.base import (
    Engine,
    EngineStats,
    FileStatus,
    GroupMemory,
    JobId,
    JobKind,
    JobResult,
    Phase,
)
from kvshelf.engine.config import EngineConfig, divided

Rows = NDArray[np.intp]


class Part(NamedTuple):
    """What one root has of a job.

    Attributes:
        rows: of the job's report, in the order in which the part's engine reports them.
        submit: hands the part to that engine.
    """

    rows: Rows
    submit: Callable[[Engine], None]


@dataclass(slots=True)
class _Job:
    """A job of several parts, not yet reported as FINISHED; ``reports`` by phase and root."""

    parts: Mapping[int, Part]
    reports: dict[Phase, dict[int, JobResult]] = field(
        default_factory=lambda: {phase: {} for phase in Phase}
    )


class Jobs:
    """Jobs of several engines, from their submission to their FINISHED report. Of a single engine
    nothing is kept: jobs may also be submitted to it past this.

    Args:
        engines: by root.
        ranks: that a lookup asks for each key; its report has one status a key.
    """

    def __init__(self, engines: Sequence[Engine], *, ranks: int) -> None:
        self._engines = engines
        self._only = engines[0] if len(engines) == 1 else None
        self._ranks = ranks
        self._lock = threading.Lock()  # guards the jobs; no call under it waits for storage
        self._jobs: dict[JobId, _Job | None] = {}  # None: of one part

    def unfinished(self) -> list[JobId]:
        """Ids of the jobs whose FINISHED report has not been polled."""
        with self._lock:
            return list(self._jobs)

    def submit(self, job_id: JobId, kind: JobKind, parts: Mapping[int, Part]) -> None:
        """Hand a job's parts out, by root. What an engine refuses when another has taken its part
        already is CANCELLED there.

        Raises:
            ValueError: the id is in use, or there are no parts.
            what an engine raises, if none takes its part.
        """
        if not parts:
            raise ValueError("a job needs at least one chunk or key")
        if self._only is not None:
            for part in parts.values():
                part.submit(self._only)
            return
        with self._lock:
            if job_id in self._jobs:
                raise ValueError(f"job id {job_id} is in use")
            if len(parts) == 1:
                for root, part in parts.items():
                    part.submit(self._engines[root])
                self._jobs[job_id] = None
            else:
                self._jobs[job_id] = self._handed_out(job_id, kind, parts)

    def poll(self) -> list[JobResult]:
        """Reports since the last call, of each root the oldest first."""
        if self._only is not None:
            reports = self._only.poll()
            return reports if self._ranks == 1 else [_of_all_ranks(r, self._ranks) for r in reports]
        reports = []
        if not self._jobs:  # as in most steps: the lock takes longer than to look
            return reports
        with self._lock:
            for root, engine in enumerate(self._engines):
                for report in engine.poll():
                    whole = self._joined(root, _of_all_ranks(report, self._ranks))
                    if whole is not None:
                        reports.append(whole)
        return reports

    def _handed_out(self, job_id: JobId, kind: JobKind, parts: Mapping[int, Part]) -> _Job:
        job, refused = _Job(parts), dict[int, Exception]()
        for root, part in parts.items():
            try:
                part.submit(self._engines[root])
            except Exception as error:
                refused[root] = error
        if len(refused) == len(parts):
            raise next(iter(refused.values()))
        for root in refused:
            statuses = (FileStatus.CANCELLED,) * len(parts[root].rows)
            for phase in Phase:
                report = JobResult(job_id, kind, phase, statuses, (0,) * len(statuses), 0, 0.0)
                job.reports[phase][root] = report
        return job

    def _joined(self, root: int, report: JobResult) -> JobResult | None:
        """The job's report, if that of this root was the last one that was missing."""
        job = self._jobs[report.job_id]
        if job is not None:
            reports = job.reports[report.phase]
            reports[root] = report
            if len(reports) < len(job.parts):
                return None
            report = _join(job.parts, reports, report)
        if report.phase is Phase.FINISHED:
            del self._jobs[report.job_id]
        return report


def _join(
    parts: Mapping[int, Part], reports: Mapping[int, JobResult], last: JobResult
) -> JobResult:
    size = sum(len(part.rows) for part in parts.values())
    statuses, errnos = np.empty(size, dtype=object), np.zeros(size, dtype=np.int64)
    for root, part in parts.items():
        statuses[part.rows] = reports[root].statuses
        errnos[part.rows] = reports[root].errnos
    return dataclasses.replace(
        last,
        statuses=tuple(statuses.tolist()),
        errnos=tuple(errnos.tolist()),
        payload_bytes=sum(each.payload_bytes for each in reports.values()),
        seconds=max(each.seconds for each in reports.values()),
    )


def open_engines(
    engine: Callable[..., Engine],
    roots: Sequence[str],
    groups: Sequence[GroupMemory],
    config: EngineConfig,
    **more: Any,
) -> list[Engine]:
    """One engine a root, over the same memory.

    Args:
        engine: makes one; called with the arguments of ``Engine``.
        config: for all of them together.

    Raises:
        what ``engine`` raises; then none stays open.
    """
    made: list[Engine] = []
    try:
        for root, share in zip(roots, divided(config, len(roots)), strict=True):
            made.append(engine(root, groups, share, **more))
    except BaseException:
        for each in made:
            each.close(0.0)
        raise
    return made


def total(each_root: Collection[EngineStats]) -> EngineStats:
    """The sum of all roots' gauges and totals; ``direct`` if it is in use in every root."""
    sums = {
        each.name: sum(getattr(stats, each.name) for stats in each_root)
        for each in dataclasses.fields(EngineStats)
    }
    return EngineStats(**{**sums, "direct": all(stats.direct for stats in each_root)})


def _of_all_ranks(report: JobResult, ranks: int) -> JobResult:
    """A lookup's report with one status a key: OK only if every rank has the chunk.

    Args:
        report: of a lookup with one status a rank, key after key; others stay as they are.
    """
    if report.kind is not JobKind.LOOKUP or ranks == 1:
        return report
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
    return dataclasses.replace(report, statuses=tuple(statuses), errnos=tuple(errnos))


def countdown(seconds: float) -> Callable[[], float]:
    """What is left of so many seconds from now on."""
    end = time.monotonic() + seconds
    return lambda: max(0.0, end - time.monotonic())
