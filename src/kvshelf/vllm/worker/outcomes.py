"""What became of jobs, as the scheduler's side must hear it: counters, faults, keys."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence

from kvshelf import metrics
from kvshelf.disk.keys import group_of
from kvshelf.engine import EngineStats, FileStatus, JobResult
from kvshelf.engine.gauges import engine_gauges
from kvshelf.faultlog import FaultLog
from kvshelf.shelf import Routes, Shelf
from kvshelf.vllm.report import STORAGE_FAULTS, WorkerReport

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Outcomes:
    """Collects until it is taken, once a step. One thread: its owner's.

    Args:
        shelf: the jobs'.
    """

    def __init__(self, faults: FaultLog, shelf: Shelf) -> None:
        self._faults = faults
        self._own_rank = 1 << shelf.rank
        self._report = WorkerReport(namespaces={shelf.folder})
        self._load_times: dict[int, float] = {}  # when a load was submitted
        self._busy_until = 0.0  # when the last of the loads that are known of ended

    def load_begins(self, job_id: int) -> None:
        self._load_times[job_id] = time.monotonic()

    def load_ended(self, keys: Sequence[bytes], routes: Routes, result: JobResult) -> None:
        """The job is FINISHED; ``keys`` are its chunks', in order, ``routes`` the shelf's."""
        for key, status, error in zip(keys, result.statuses, result.errnos, strict=True):
            if status is not FileStatus.OK:
                self.load_failure(key, status, error)
        loaded = sum(status is FileStatus.OK for status in result.statuses)
        self._report.count(metrics.LOAD_CHUNKS, by=loaded)
        self._report.count(metrics.LOAD_BYTES, by=result.payload_bytes)
        self._report.observe(metrics.LOAD_SECONDS, result.seconds)
        self._report.loads.append((len(keys), loaded, self._busy_seconds(result)))
        self._outcomes("load", routes, result)

    def load_refused(self, keys: Sequence[bytes]) -> None:
        """The job was never begun: nobody waits for it any more."""
        for key in keys:
            self.load_failure(key, FileStatus.CANCELLED, 0)
        if keys:
            self._report.loads.append((len(keys), 0, 0.0))

    def load_failure(self, key: bytes, status: FileStatus, error: int) -> None:
        cause = status.name.lower()
        (self._report.unread if status in STORAGE_FAULTS else self._report.failed).add(key)
        self._report.count(metrics.LOAD_FAILURES, cause)
        self._faults.fault(f"load failed ({cause})", _describe(key, error))

    def store_ended(self, keys: Sequence[bytes], routes: Routes, result: JobResult) -> None:
        """As ``load_ended``."""
        for key, status, error in zip(keys, result.statuses, result.errnos, strict=True):
            self.store_outcome(key, status, error)
        self._report.count(metrics.STORE_BYTES, by=result.payload_bytes)
        self._report.observe(metrics.STORE_SECONDS, result.seconds)
        self._outcomes("store", routes, result)

    def store_outcome(self, key: bytes, status: FileStatus, error: int) -> None:
        if status is FileStatus.OK:
            self._report.published[key] = self._own_rank
            self._report.count(metrics.STORE_OUTCOMES, "published")
            return
        cause = status.name.lower()
        self._report.not_stored.add(key)
        self._report.count(metrics.STORE_OUTCOMES, cause)
        self._faults.fault(f"store failed ({cause})", _describe(key, error))

    def saw_changes(self, *, of_weights: bool = False, of_adapters: bool = False) -> None:
        """This worker computes with other weights than it last told, or with another adapter."""
        self._report.has_changed_weights |= of_weights
        self._report.has_changed_adapters |= of_adapters

    def audited(self, key: bytes, verdict: str, distance: float) -> None:
        """A chunk was compared with what was computed; of one that differs nothing is believed."""
        self._report.count(metrics.AUDIT_CHUNKS, verdict)
        if verdict != "skipped":
            self._report.observe(metrics.AUDIT_DISTANCE, distance)
        if verdict == "different":
            self._report.failed.add(key)

    def take(self, stats: EngineStats) -> WorkerReport | None:
        """What happened since the last call, with the engine's gauges; None if nothing did."""
        if self._report.is_empty():
            return None
        report, self._report = self._report, WorkerReport()
        for name, label, value in engine_gauges(stats):
            report.gauges[name, label] = value
        return report

    def _busy_seconds(self, result: JobResult) -> float:
        """By how much this load lengthened the time in which there were loads."""
        begin = self._load_times.pop(result.job_id)
        end = begin + result.seconds
        seconds = max(0.0, end - max(begin, self._busy_until))
        self._busy_until = max(end, self._busy_until)
        return seconds

    def _outcomes(self, kind: str, routes: Routes, result: JobResult) -> None:
        """What the job says of each root, if anything: a damaged chunk says nothing."""
        for root, rows in routes:
            full = next((result.errnos[row] for row in rows if result.errnos[row] in NO_ROOM), 0)
            if full and kind == "store":
                self._report.no_room.append((full, root))
            bad = next((row for row in rows if result.statuses[row] in STORAGE_FAULTS), None)
            if bad is not None:
                error, status = result.errnos[bad], result.statuses[bad]
                cause = os.strerror(error) if error else status.name.lower().replace("_", " ")
                self._report.outcomes.append((kind, f"{kind}: {cause}", root))
            elif any(result.statuses[row] is FileStatus.OK for row in rows):
                self._report.outcomes.append((kind, "", root))


def _describe(key: bytes, error: int) -> str:
    reason = f": {os.strerror(error)}" if error else ""
    return f"chunk {key[:-4].hex()[:16]} of group {group_of(key)}{reason}"
