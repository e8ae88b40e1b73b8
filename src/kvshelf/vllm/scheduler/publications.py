"""Chunks on their way to the shelf, and those that this engine lately brought there.

Scheduler's thread only; no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from kvshelf.vllm.bounded import drop_oldest
from kvshelf.vllm.report import WorkerReport

# An eviction may be heard of so late: an NFS client may believe an old folder for a minute.
JOURNAL_SECONDS = 90.0
# Keys that some workers have published and others not yet, or never.
PUBLISHING_KEYS_MAX = 65_536
# Keys that failed to load; others may store them anew, or nobody.
TO_HEAL_KEYS_MAX = 65_536


class Publications:
    """
    Args:
        num_workers: how many ranks must have a chunk before it counts as published.

    Attributes:
        lately: key -> when every rank had it, by ``time.monotonic``; the oldest first.
    """

    def __init__(self, num_workers: int) -> None:
        self._every_rank = (1 << num_workers) - 1
        self.publishing: dict[bytes, int] = {}  # key -> ranks that have published it, a bit each
        self.to_heal: dict[bytes, None] = {}  # failed to load and are not stored anew yet
        self.lately: OrderedDict[bytes, float] = OrderedDict()
        self._others: dict[bytes, None] = {}  # chunk files of earlier epochs that are being stored

    def turns(self, names: Iterable[bytes]) -> None:
        """An epoch begins while chunk files of these keys are on their way."""
        self._others.update(dict.fromkeys(names))
        drop_oldest(self._others, PUBLISHING_KEYS_MAX)

    def of_this_epoch(self, report: WorkerReport) -> WorkerReport:
        """The report without what it says of stores of earlier epochs."""
        if not self._others:
            return report
        over = [name for name in (*report.published, *report.not_stored) if name in self._others]
        if not over:
            return report
        mine = {key: ranks for key, ranks in report.published.items() if key not in self._others}
        # Other ranks may still report those that one rank reported.
        return replace(report, published=mine, not_stored=report.not_stored - set(over))

    def begins(self, key: bytes) -> None:
        """A store of it is handed out; or given up."""
        self.publishing.pop(key, None)

    def failed(self, keys: Iterable[bytes]) -> None:
        """Loads of these failed: they are to be stored anew."""
        self.to_heal.update(dict.fromkeys(keys))
        drop_oldest(self.to_heal, TO_HEAL_KEYS_MAX)

    def published(self, ranks: Mapping[bytes, int]) -> list[bytes]:
        """Some ranks, a bit each, have published each key. The keys that all ranks have now."""
        complete = []
        for key, news in ranks.items():
            known = news | self.publishing.pop(key, 0)
            if known == self._every_rank:
                complete.append(key)
            else:
                self.publishing[key] = known
        drop_oldest(self.publishing, PUBLISHING_KEYS_MAX)
        return complete

    def note(self, keys: Iterable[bytes], now: float) -> None:
        """Every rank has these now."""
        for key in keys:  # a key that is there already becomes the last
            self.lately.pop(key, None)
            self.lately[key] = now

    def healed(self, keys: Iterable[bytes]) -> int:
        """How many of these had failed to load before."""
        healed = [key for key in keys if key in self.to_heal]
        for key in healed:
            del self.to_heal[key]
        return len(healed)

    def expire(self, now: float) -> None:
        """Drop what was published so long ago that no eviction before it is still unheard of."""
        while self.lately and next(iter(self.lately.values())) < now - JOURNAL_SECONDS:
            self.lately.popitem(last=False)

    def forget(self) -> None:
        self.publishing.clear()
        self.to_heal.clear()
        self.lately.clear()
