"""Whether the storage is asked at all: a breaker for reading and one for writing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

from kvshelf import metrics
from kvshelf.breaker import Breaker, State
from kvshelf.config import Settings
from kvshelf.engine import FileStatus
from kvshelf.faultlog import FaultLog
from kvshelf.sglang.stats import Stats

# What says that the storage is ill, not that one chunk is bad or absent.
_ILL = frozenset({FileStatus.IO_ERROR, FileStatus.TIMED_OUT})


class Health:
    """One direction: "reading" or "writing". Threads: any.

    Args:
        roots: names all roots of the shelf in log lines and labels.
    """

    def __init__(
        self, side: str, roots: str, settings: Settings, stats: Stats, faults: FaultLog
    ) -> None:
        self._side, self._roots = side, roots
        self._stats, self._faults = stats, faults
        self._breaker = Breaker(
            faults=settings.breaker_faults, retry_seconds=settings.breaker_retry_seconds
        )
        self._calls = itertools.count()
        self._lock = threading.Lock()
        stats.gauge(metrics.BREAKER_STATE, State.CLOSED, side, roots)

    def admits(self) -> bool:
        """Whether this call may use the storage; one call in breaker_retry_seconds may try it."""
        now = time.monotonic()
        with self._lock:
            if self._breaker.is_due(now):
                self._breaker.answered()
            admitted = self._breaker.admits(str(next(self._calls)), now)
            self._tell()
        return admitted

    def saw(self, statuses: Sequence[FileStatus]) -> None:
        """What a job said of the storage; nothing about an empty one."""
        ill = next((each for each in statuses if each in _ILL), None)
        if ill is not None:
            self.fault(ill.name.lower())
        elif statuses:
            with self._lock:
                self._breaker.success(time.monotonic())
                self._tell()

    def fault(self, cause: str) -> None:
        with self._lock:
            self._breaker.fault(cause, time.monotonic())
            self._tell()

    def _tell(self) -> None:
        for change in self._breaker.take_changes():
            self._stats.gauge(metrics.BREAKER_STATE, change.state, self._side, self._roots)
            if change.state is State.OPEN:
                self._stats.count(metrics.BREAKER_OPENINGS, self._side, self._roots)
                text = f"{self._roots}: suspended after {change.cause}; SGLang computes instead"
                self._faults.fault(f"{self._side} suspended", text)
            elif change.state is State.CLOSED:
                text = f"{self._roots}: resumed after {change.open_seconds:.1f} s"
                self._faults.fault(f"{self._side} resumed", text)
