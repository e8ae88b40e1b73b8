"""One log line per cause and minute, however many faults there are."""

from __future__ import annotations

import logging
import time

# Often enough to see that a fault goes on, rare enough not to flood a log.
INTERVAL_SECONDS = 60.0


class FaultLog:
    """Counts faults by cause and logs the first of each minute.

    Threads: any; of two at once both may log.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def fault(self, cause: str, text: str) -> None:
        """Log ``text`` unless ``cause`` was logged less than a minute ago."""
        now = time.monotonic()
        if now < self._next.get(cause, 0.0):
            self._held_back[cause] = self._held_back.get(cause, 0) + 1
            return
        self._next[cause] = now + INTERVAL_SECONDS
        more = self._held_back.pop(cause, 0)
        suffix = f" ({more} more like it since the last line)" if more else ""
        self._logger.warning("kvshelf: %s: %s%s", cause, text, suffix)
