"""Stores that were handed out before the weights changed, whose reports mean nothing any more.

Scheduler's thread only; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kvshelf.vllm.bounded import drop_oldest
from kvshelf.vllm.report import WorkerReport

# More than one engine has under way.
NAMES_MAX = 65_536


class EarlierStores:
    """By the keys of their chunk files, which other weights never have."""

    def __init__(self) -> None:
        self._names: dict[bytes, None] = {}

    def add(self, names: Iterable[bytes]) -> None:
        """An epoch begins while chunk files of these keys are on their way."""
        self._names.update(dict.fromkeys(names))
        drop_oldest(self._names, NAMES_MAX)

    def without(self, report: WorkerReport) -> WorkerReport:
        """The report without what it says of stores of earlier epochs."""
        if not self._names:
            return report
        over = [name for name in (*report.published, *report.not_stored) if name in self._names]
        if not over:
            return report
        mine = {key: ranks for key, ranks in report.published.items() if key not in self._names}
        # Other ranks may still report those that one rank reported.
        return replace(report, published=mine, not_stored=report.not_stored - set(over))
