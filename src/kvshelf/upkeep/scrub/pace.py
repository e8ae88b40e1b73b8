"""How fast a scrub may read. One thread."""

from __future__ import annotations

import time
from collections.abc import Callable

# Shorter waits are saved up: a timer has its own price.
_SLEEP_SECONDS_MIN = 0.001
_CREDIT_SECONDS = 1.0


class Pace:
    """Sleeps so that a rate of bytes and a rate of files are kept. Of time that was idle a second
    is made up for, so that neither limit's sleep counts against the other's.

    Args:
        bytes_per_second, files_per_second: 0 for no limit.
        clock, sleep: of seconds; for tests.
    """

    def __init__(
        self,
        bytes_per_second: float,
        files_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._byte_seconds = 1 / bytes_per_second if bytes_per_second else 0.0
        self._file_seconds = 1 / files_per_second if files_per_second else 0.0
        self._clock, self._sleep = clock, sleep
        # When what was spent so far is paid for.
        self._bytes_due = self._files_due = clock()

    def spend(self, *, read_bytes: int = 0, files: float = 0) -> None:
        """Say what was just done; returns when more may be done."""
        now = self._clock()
        earliest = now - _CREDIT_SECONDS
        self._bytes_due = max(self._bytes_due, earliest) + read_bytes * self._byte_seconds
        self._files_due = max(self._files_due, earliest) + files * self._file_seconds
        wait = max(self._bytes_due, self._files_due) - now
        if wait >= _SLEEP_SECONDS_MIN:
            self._sleep(wait)
