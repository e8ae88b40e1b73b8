"""Eviction as an engine sees it: limits from its settings, news as metrics and log lines.

Every root has a duty of its own, with its own lease, limits and journal.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping, Sequence

from kvshelf import metrics
from kvshelf.faultlog import FaultLog
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.limits import Amount
from kvshelf.upkeep.evict.news import News
from kvshelf.upkeep.evict.report import STATES
from kvshelf.vllm.report import NoRoom
from kvshelf.vllm.scheduler.masked import MaskedShelf
from kvshelf.vllm.stats import StatsSink


class EvictionNews:
    """Takes the duties' news on the scheduler's thread. Without a duty there is none.

    Args:
        duties: one a root; started here, ended by ``close``.
        shelf: says in which root a key lies. When a root was added, those before it still have
            chunks that lie in it now: that these are evicted says nothing.
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
        self._stats = stats
        self._logger = logger
        self._faults = FaultLog(logger)
        self._holds: set[int] = set()  # roots in which this engine evicts
        self._shown: dict[int, Mapping[str, Amount]] = {}  # of each root, by namespace
        self._held: dict[int, int] = {}  # chunk files of each root that cannot be removed
        self._counted: set[str] = set()  # namespaces
        for duty in duties:
            duty.start()

    def take(self) -> Sequence[tuple[int, bytes]]:
        """(root, key) of what somebody evicted since the last call. Microseconds when there is no
        news. Several engines' roots may be in other orders: a key may be of another root."""
        gone: list[tuple[int, bytes]] = []
        for root, duty in enumerate(self._duties):
            if duty.has_news:
                news = duty.take()
                self._count(root, news)
                gone.extend((root, key) for key in news.gone)
        return gone

    def hear_no_room(self, no_room: Sequence[NoRoom]) -> None:
        """Stores failed with ENOSPC or EDQUOT: whoever evicts in those roots is to make room."""
        for number, key in no_room:
            root = self._shelf.root_of(key)
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
        self._count_state(root, news)
        self._count_events(news)

    def _count_state(self, root: int, news: News) -> None:
        """What holds now, as gauges. What the lease holder knows is 0 from others."""
        stats = self._stats
        if news.is_holder != (root in self._holds):
            self._holds ^= {root}
            path = self._shelf.roots[root] if len(self._duties) > 1 else "the shelf"
            what = "now" if news.is_holder else "no longer"
            self._logger.info("kvshelf: this engine %s keeps %s within its limits", what, path)
        if news.clock is not None:
            self._shelf.set_clock(root, news.clock)
        name = self._shelf.roots[root]
        stats.gauge(metrics.EVICT_LEASE_HELD, float(news.is_holder), name)
        state, volume = news.state, news.volume
        stats.gauge(metrics.EVICT_STATE, STATES.index(state) if state in STATES else 0, name)
        stats.gauge(metrics.VOLUME_USED_BYTES, volume.used_bytes if volume else 0, name)
        stats.gauge(metrics.VOLUME_TOTAL_BYTES, volume.total_bytes if volume else 0, name)
        self._held[root] = news.held_chunks
        stats.gauge(metrics.EVICT_HELD, sum(self._held.values()))
        self._shown[root] = news.shelf
        known: dict[str, Amount] = {}
        for folder, amount in (pair for shown in self._shown.values() for pair in shown.items()):
            known[folder] = known.get(folder, Amount()) + amount
        for folder in self._counted | known.keys():
            amount = known.get(folder, Amount())
            stats.gauge(metrics.SHELF_BYTES, amount.bytes, folder)
            stats.gauge(metrics.SHELF_CHUNKS, amount.files, folder)
        self._counted = set(known)

    def _count_events(self, news: News) -> None:
        stats = self._stats
        for name, value in (
            (metrics.EVICTED_CHUNKS, news.removed_files),
            (metrics.EVICTED_BYTES, news.removed_bytes),
            (metrics.GONE_KEYS, len(news.gone) + news.dropped),
            (metrics.EVICT_TEMP_FILES, news.leftovers.files),
            (metrics.EVICT_TEMP_BYTES, news.leftovers.bytes),
            (metrics.ROOM_REQUESTS, news.room_requests),
        ):
            if value:
                stats.count(name, by=value)
        if news.pass_seconds is not None:
            stats.gauge(metrics.EVICT_DURATION, news.pass_seconds)
        for limit in news.no_effect:
            stats.count(metrics.EVICT_NO_EFFECT, limit)
        for cause, text in news.notes:
            self._faults.fault(cause, text)
        for fault in news.faults:
            stats.count(metrics.EVICT_FAULTS, fault.errno, by=fault.times)
            self._faults.fault(f"eviction, {fault.part}", fault.text)
