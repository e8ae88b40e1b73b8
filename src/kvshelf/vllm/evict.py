"""Eviction as an engine sees it: limits from its settings, news as metrics and log lines."""

from __future__ import annotations

import logging
from collections.abc import Collection

from kvshelf import metrics
from kvshelf.config import Settings
from kvshelf.evict import Limits
from kvshelf.evict.duty import EvictionDuty, News
from kvshelf.vllm.faultlog import FaultLog
from kvshelf.vllm.stats import StatsSink


def limits_of(settings: Settings) -> Limits:
    """What a user allows the shelf to take; nothing at all is limited if eviction is off."""
    if not settings.evict:
        return Limits()
    return Limits(
        shelf_bytes=int(settings.evict_shelf_gb * 1e9) or None,
        volume_percent=settings.evict_percent,
        inode_percent=settings.evict_percent,
        low_percent=settings.evict_low_percent,
    )


def duty_of(settings: Settings, folder: str) -> EvictionDuty:
    """The duty of one engine, for its namespace's folder. Not started."""
    return EvictionDuty(
        settings.shared_storage_path,
        folder,
        limits=limits_of(settings),
        lease_seconds=settings.evict_lease_seconds,
        dir_mode=settings.dir_mode,
        file_mode=settings.file_mode,
    )


class Eviction:
    """Takes a duty's news on the scheduler's thread. Without a duty there is none.

    Args:
        duty: started here, ended by ``close``.
    """

    def __init__(self, duty: EvictionDuty | None, stats: StatsSink, logger: logging.Logger) -> None:
        self._duty = duty
        self._stats = stats
        self._logger = logger
        self._faults = FaultLog(logger)
        self._is_holder: bool | None = None
        if duty is not None:
            duty.start()

    def take(self) -> Collection[bytes]:
        """Keys that somebody evicted since the last call. Microseconds when there is no news."""
        if self._duty is None or not self._duty.has_news:
            return ()
        news = self._duty.take()
        self._count(news)
        return news.gone

    def close(self, timeout_seconds: float) -> None:
        if self._duty is not None and not self._duty.close(timeout_seconds):
            self._logger.warning("kvshelf: eviction still waits for the storage; left behind")

    def _count(self, news: News) -> None:
        stats = self._stats
        if news.is_holder != self._is_holder:
            self._is_holder = news.is_holder
            what = "now" if news.is_holder else "no longer"
            self._logger.info("kvshelf: this engine %s keeps the shelf within its limits", what)
        stats.gauge(metrics.EVICT_LEASE_HELD, news.is_holder)
        stats.gauge(metrics.SHELF_BYTES, news.shelf_bytes)
        for name, value in (
            (metrics.EVICTED_FILES, news.removed_files),
            (metrics.EVICTED_BYTES, news.removed_bytes),
            (metrics.GONE_KEYS, len(news.gone) + news.dropped),
        ):
            if value:
                stats.count(name, by=value)
        if news.pass_seconds is not None:
            stats.gauge(metrics.EVICT_DURATION, news.pass_seconds)
        for part, text in news.faults:
            stats.count(metrics.EVICT_FAULTS, part)
            self._faults.fault(f"eviction, {part}", text)
