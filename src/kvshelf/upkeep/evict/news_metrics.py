"""An engine's metrics of eviction, from its duties' news: the same for every kind of engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kvshelf import metrics
from kvshelf.faultlog import FaultLog
from kvshelf.upkeep.evict.limits import Amount
from kvshelf.upkeep.evict.news import News
from kvshelf.upkeep.evict.report import STATES


class Stats(Protocol):
    """Where an engine counts, by names of ``kvshelf.metrics``."""

    def count(self, name: str, *labels: str, by: float = 1) -> None: ...
    def gauge(self, name: str, value: float, *labels: str) -> None: ...


class NewsMetrics:
    """Counts news, and logs their notes and faults. One thread at a time.

    Args:
        roots: their paths, in the order of the duties.
    """

    def __init__(self, roots: Sequence[str], stats: Stats, faults: FaultLog) -> None:
        self._roots = roots
        self._stats = stats
        self._faults = faults
        self._shown: dict[int, Mapping[str, Amount]] = {}  # of each root, by namespace
        self._held: dict[int, int] = {}  # chunk files of each root that cannot be removed
        self._counted: set[str] = set()  # namespaces

    def count(self, root: int, news: News) -> None:
        """Count the news of one root's duty; ``root`` is its place in ``roots``."""
        self._count_state(root, news)
        self._count_events(news)

    def _count_state(self, root: int, news: News) -> None:
        """What holds now, as gauges. What the lease holder knows is 0 from others."""
        stats, name = self._stats, self._roots[root]
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
