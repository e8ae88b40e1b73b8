"""Eviction as an engine sees it: limits from its settings, news as metrics and log lines.

Every root has a duty of its own, with its own lease, limits and journal.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Sequence

from kvshelf.disk.keys import masked
from kvshelf.faultlog import FaultLog
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.news import News
from kvshelf.upkeep.evict.news_metrics import NewsMetrics
from kvshelf.vllm.report import NoRoom
from kvshelf.vllm.scheduler.masked import MaskedShelf
from kvshelf.vllm.stats import StatsSink

# A step hears of so many evicted keys: a millisecond or two of the scheduler's thread.
EVICTED_KEYS_A_STEP = 1024


class EvictionNews:
    """Takes the duties' news on the scheduler's thread. Without a duty there is none.

    Args:
        duties: one a root; started here, ended by ``close``.
        shelf: says in which root a key lies, and is told the clocks of the roots.
    """

    def __init__(
        self,
        duties: Sequence[EvictionDuty],
        shelf: MaskedShelf,
        stats: StatsSink,
        logger: logging.Logger,
    ) -> None:
        self._duties = duties
        self._shelf = shelf
        self._logger = logger
        self._faults = FaultLog(logger)
        self._holds: set[int] = set()  # roots in which this engine evicts
        self._gone: deque[tuple[int, bytes]] = deque()  # (root, name) not taken yet
        self._metrics = NewsMetrics(shelf.roots, stats, self._faults)
        for duty in duties:
            duty.start()

    def take(self) -> list[bytes]:
        """Keys of chunks that somebody evicted; a part of them a call, so that none takes long.
        Microseconds when there is no news."""
        if not self._gone:  # until then the duties keep a bounded number
            for root, duty in enumerate(self._duties):
                if duty.has_news:
                    news = duty.take()
                    self._count(root, news)
                    self._gone.extend((root, name) for name in news.gone)
        keys = []
        for _ in range(min(len(self._gone), EVICTED_KEYS_A_STEP)):
            root, name = self._gone.popleft()
            key = masked(name, self._shelf.mask)
            # When a root was added, others still have chunks that lie in it now: that these are
            # evicted says nothing. Nor need several engines' roots be in the same order.
            if self._shelf.root_of(key) == root:
                keys.append(key)
        return keys

    def forget(self) -> None:
        """Other weights: other keys."""
        self._gone.clear()

    def hear_no_room(self, no_room: Sequence[NoRoom]) -> None:
        """Stores failed with ENOSPC or EDQUOT: whoever evicts in those roots is to make room."""
        for number, root in no_room:
            if root < len(self._duties):
                self._duties[root].want_room()
            self._faults.fault(
                f"no room for stores ({errno.errorcode[number]})",
                f"{self._shelf.roots[root]}: {os.strerror(number)}; asks for eviction",
            )

    def close(self, timeout_seconds: float) -> None:
        end = time.monotonic() + timeout_seconds
        for duty in self._duties:
            duty.stop()
        for duty in self._duties:
            if not duty.close(max(0.0, end - time.monotonic())):
                self._logger.warning("kvshelf: eviction still waits for the storage; left behind")

    def _count(self, root: int, news: News) -> None:
        if news.is_holder != (root in self._holds):
            self._holds ^= {root}
            path = self._shelf.roots[root] if len(self._duties) > 1 else "the shelf"
            what = "now" if news.is_holder else "no longer"
            self._logger.info("kvshelf: this engine %s keeps %s within its limits", what, path)
        if news.clock is not None:
            self._shelf.set_clock(root, news.clock)
        self._metrics.count(root, news)
