"""Eviction by a SGLang engine: the duty of one of its ranks, as any vLLM replica's."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

from kvshelf.config import Settings
from kvshelf.faultlog import FaultLog
from kvshelf.sglang.stats import Stats
from kvshelf.shelf import Shelf
from kvshelf.upkeep.evict.duties import duties_of
from kvshelf.upkeep.evict.news import News
from kvshelf.upkeep.evict.news_metrics import NewsMetrics

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Eviction:
    """One duty a root. Threads: any; nothing waits for storage but ``close``."""

    def __init__(self, settings: Settings, shelf: Shelf, stats: Stats, faults: FaultLog) -> None:
        self._shelf = shelf
        self._metrics = NewsMetrics(shelf.roots, stats, faults)
        self._lock = threading.Lock()
        self._duties = duties_of(settings, shelf)
        for duty in self._duties:
            duty.start()

    def take_news(self) -> None:
        """Count and log what the duties did since the last call. Microseconds without news."""
        with self._lock:
            for root, duty in enumerate(self._duties):
                if duty.has_news:
                    self._hear(root, duty.take())

    def want_room(self, keys: Sequence[bytes]) -> None:
        """Stores of these failed for lack of room."""
        for root in {self._shelf.root_of(key) for key in keys}:
            self._duties[root].want_room()

    def close(self, timeout_seconds: float) -> None:
        for duty in self._duties:
            duty.stop()
        for duty in self._duties:
            duty.close(timeout_seconds / len(self._duties))
        self.take_news()

    def _hear(self, root: int, news: News) -> None:
        if news.clock is not None:
            self._shelf.set_clock(root, news.clock.ahead_ns)
        self._metrics.count(root, news)
