"""Jobs of one shelf for several threads, each of which waits for its own."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from kvshelf.engine import JobId, JobResult, Phase
from kvshelf.faultlog import FaultLog
from kvshelf.shelf import Shelf

# The engine ends every job by its own deadline; the rest is for it to say so.
_GRACE_SECONDS = 1.0


class Jobs:
    """Threads: any."""

    def __init__(self, shelf: Shelf, faults: FaultLog) -> None:
        self._shelf, self._faults = shelf, faults
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._done: dict[JobId, JobResult] = {}
        self._left: set[JobId] = set()  # nobody waits for them any more

    def run(self, submit: Callable[[JobId], object], limit_seconds: float) -> JobResult | None:
        """Wait for the end of a job that uses host memory, by the engine's deadline.

        Never returns while the engine may still use that memory. None: the engine refused the job.
        """
        job = self._submitted(submit)
        while job is not None:
            self._shelf.wait([job], Phase.FINISHED, limit_seconds + _GRACE_SECONDS)
            result = self._take(job)
            if result is not None:
                return result
        return None

    def ask(self, submit: Callable[[JobId], object], limit_seconds: float) -> JobResult | None:
        """Wait for a job that uses no memory of ours; None: refused, or it did not end in time."""
        job = self._submitted(submit)
        if job is None:
            return None
        self._shelf.wait([job], Phase.FINISHED, limit_seconds)
        result = self._take(job)
        if result is None:
            self._shelf.cancel([job])
            with self._lock:
                if self._done.pop(job, None) is None:
                    self._left.add(job)
        return result

    def _submitted(self, submit: Callable[[JobId], object]) -> JobId | None:
        """An engine that refuses is a fault like any other: SGLang's threads must go on."""
        job = next(self._ids)
        try:
            submit(job)
        except Exception as error:
            self._faults.fault("job refused, recompute", f"{type(error).__name__}: {error}")
            return None
        return job

    def _take(self, job: JobId) -> JobResult | None:
        with self._lock:
            for result in self._shelf.poll():
                if result.phase is not Phase.FINISHED:
                    continue
                if result.job_id in self._left:
                    self._left.discard(result.job_id)
                else:
                    self._done[result.job_id] = result
            return self._done.pop(job, None)
