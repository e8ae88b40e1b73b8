"""An engine around an engine that fails on demand, for tests of what stands above."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from kvshelf.engine import Batch, Engine, FileStatus, JobId, JobKind, JobResult, Phase


class FaultyEngine:
    """Replaces the statuses of chosen paths in FINISHED reports. All else goes to ``inner``.

    Args:
        inner: does the work.
        faults: (kind, path) -> status to report, and its errno if it is IO_ERROR. May be changed
            at any time by its owner.
    """

    def __init__(
        self, inner: Engine, faults: Mapping[tuple[JobKind, str], tuple[FileStatus, int]]
    ) -> None:
        self._inner = inner
        self._faults = faults
        self._paths: dict[JobId, tuple[str, ...]] = {}

    def submit_store(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        self._inner.submit_store(job_id, batch, stream)
        self._paths[job_id] = tuple(batch.paths)

    def submit_load(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        self._inner.submit_load(job_id, batch, stream)
        self._paths[job_id] = tuple(batch.paths)

    def submit_lookup(self, job_id: JobId, paths: Sequence[str]) -> None:
        self._inner.submit_lookup(job_id, paths)
        self._paths[job_id] = tuple(paths)

    def poll(self) -> list[JobResult]:
        return [self._changed(report) for report in self._inner.poll()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _changed(self, report: JobResult) -> JobResult:
        if report.phase is not Phase.FINISHED:
            return report
        statuses, errnos = list(report.statuses), list(report.errnos)
        for row, path in enumerate(self._paths.pop(report.job_id, ())):
            fault = self._faults.get((report.kind, path))
            if fault is not None:
                statuses[row], errnos[row] = fault
        return dataclasses.replace(report, statuses=tuple(statuses), errnos=tuple(errnos))
