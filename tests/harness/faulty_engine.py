"""An engine around an engine that fails on demand, for tests of what stands above."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from kvshelf.disk.keys import masked_all
from kvshelf.disk.layout import chunk_path_in
from kvshelf.engine import Batch, Engine, FileStatus, JobId, JobKind, JobResult, Phase

Faults = Mapping[tuple[JobKind, str], tuple[FileStatus, int]]


class FaultyEngine:
    """Replaces the statuses of chosen paths in FINISHED reports. All else is ``inner``'s.

    The work itself is done: a load that is said to have failed has written its blocks, which the
    contract allows (their contents are undefined), and a store that is said to have failed is
    there. Thread-safe if ``inner`` is.

    Args:
        inner: does the work. Must have no unpolled jobs.
        faults: (kind, path) -> status to report, and its errno if it is IO_ERROR. Its owner may
            change it at any time; it is read when a report is polled.
    """

    def __init__(self, inner: Engine, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._lock = threading.Lock()  # guards _paths, and keeps poll from overtaking a submission
        self._paths: dict[JobId, tuple[str, ...]] = {}

    def submit_store(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        with self._lock:
            self._inner.submit_store(job_id, batch, stream)
            self._paths[job_id] = tuple(batch.paths)

    def submit_load(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        with self._lock:
            self._inner.submit_load(job_id, batch, stream)
            self._paths[job_id] = tuple(batch.paths)

    def submit_lookup(self, job_id: JobId, paths: Sequence[str]) -> None:
        with self._lock:
            self._inner.submit_lookup(job_id, paths)
            self._paths[job_id] = tuple(paths)

    def submit_lookup_keys(
        self,
        job_id: JobId,
        folders: Sequence[str],
        keys: Sequence[bytes],
        runs: Sequence[int] = (),
        mask: bytes = b"",
    ) -> None:
        with self._lock:
            self._inner.submit_lookup_keys(job_id, folders, keys, runs, mask)
            self._paths[job_id] = tuple(
                chunk_path_in(f, key) for key in masked_all(keys, mask) for f in folders
            )

    def submit_probe(self, job_id: JobId, paths: Sequence[str], bytes_max: int) -> None:
        with self._lock:
            self._inner.submit_probe(job_id, paths, bytes_max)
            self._paths[job_id] = tuple(paths)

    def poll(self) -> list[JobResult]:
        with self._lock:
            return [self._changed(report) for report in self._inner.poll()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _changed(self, report: JobResult) -> JobResult:
        if report.phase is not Phase.FINISHED:
            return report
        statuses, errnos = list(report.statuses), list(report.errnos)
        for row, path in enumerate(self._paths.pop(report.job_id)):
            fault = self._faults.get((report.kind, path))
            if fault is not None:
                statuses[row], errnos[row] = fault
        return dataclasses.replace(report, statuses=tuple(statuses), errnos=tuple(errnos))
