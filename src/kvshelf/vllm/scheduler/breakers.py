"""Which roots of a shelf are left alone: one breaker for reading and one for writing each.

    lookups, workers' reports -> Breakers -> what a request may read, ask for and store

Scheduler's thread only; no I/O. While all is well no key's root is computed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from kvshelf import metrics
from kvshelf.breaker import Breaker, State
from kvshelf.config import Settings
from kvshelf.engine import FileStatus, JobResult
from kvshelf.vllm.compat import KeyRun
from kvshelf.vllm.report import STORAGE_FAULTS, Outcome
from kvshelf.vllm.scheduler.masked import MaskedShelf
from kvshelf.vllm.stats import StatsSink

_NO_ROOT: frozenset[int] = frozenset()
# Asks whether a root answers at all; the answer goes to the second argument. False: not asked.
Ping = Callable[[int, Callable[[JobResult], None]], bool]


class Breakers:
    """
    Args:
        shelf: says which roots there are, and in which one a key lies.
    """

    def __init__(
        self, shelf: MaskedShelf, settings: Settings, stats: StatsSink, logger: logging.Logger
    ) -> None:
        self._shelf = shelf
        self._stats = stats
        self._logger = logger
        self._retry_seconds = settings.breaker_retry_seconds
        self.reading, self.writing = (
            [
                Breaker(faults=settings.breaker_faults, retry_seconds=self._retry_seconds)
                for _ in shelf.roots
            ]
            for _ in metrics.BREAKER_SIDES
        )
        self._pinged: set[int] = set()  # roots that were asked whether they answer again

    def shut_to(self, req_id: str) -> frozenset[int]:
        """Roots that this request may not read."""
        for breaker in self.reading:
            if breaker.state is not State.CLOSED:
                break
        else:
            return _NO_ROOT
        now = time.monotonic()
        return frozenset(i for i, each in enumerate(self.reading) if not each.admits(req_id, now))

    def askable(self, runs: Iterable[KeyRun]) -> Iterable[KeyRun]:
        """What may be asked for before a request does: no more of a prefix than can be of use."""
        away = self._away()
        if not away:
            return runs
        return [] if len(away) == len(self.reading) else [self._cut(run, away) for run in runs]

    def readable(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Those in roots that everybody reads."""
        away = self._away()
        return [k for k in keys if self._shelf.root_of(k) not in away] if away else keys

    def writable(self, keys: list[bytes], req_id: str) -> list[bytes]:
        """Those in roots to which this request may write."""
        both = (*self.reading, *self.writing)
        if all(breaker.state is State.CLOSED for breaker in both):
            return keys
        now, roots = time.monotonic(), [self._shelf.root_of(key) for key in keys]
        good = {
            root
            for root in set(roots)
            if self.reading[root].state is not State.OPEN and self.writing[root].admits(req_id, now)
        }
        return [key for key, root in zip(keys, roots, strict=True) if root in good]

    def told(self, outcomes: Iterable[Outcome], now: float) -> None:
        """What the workers say of their jobs."""
        for kind, cause, root in outcomes:
            breaker = (self.reading if kind == "load" else self.writing)[root]
            if cause:
                breaker.fault(cause, now)
            else:
                breaker.success(now)

    def measured(self, keys: Sequence[bytes], statuses: Sequence[FileStatus], now: float) -> bool:
        """The statuses of a probe of these chunks, of all ranks key after key. False if a root
        failed."""
        ranks = len(statuses) // len(keys)
        failed = {
            self._shelf.root_of(keys[row // ranks])
            for row, status in enumerate(statuses)
            if status in STORAGE_FAULTS
        }
        for root in failed:
            self.reading[root].fault("measurement: failed or timed out", now)
        return not failed

    def tend(self, now: float, ping: Ping) -> None:
        """Try what is due, and tell what has changed; once a step."""
        for root, (reading, writing) in enumerate(zip(self.reading, self.writing, strict=True)):
            if reading.is_due(now) and root not in self._pinged:
                if ping(root, partial(self._answered, root)):
                    self._pinged.add(root)
                else:
                    reading.not_answered(now)
            if writing.is_due(now):
                writing.answered()
            for side, breaker in zip(metrics.BREAKER_SIDES, (reading, writing), strict=True):
                self._tell(root, side, breaker)

    def states(self) -> Iterable[tuple[int, tuple[str, str]]]:
        """(state, labels) of every breaker."""
        for side, breakers in zip(metrics.BREAKER_SIDES, (self.reading, self.writing), strict=True):
            for root, breaker in zip(self._shelf.roots, breakers, strict=True):
                yield breaker.state, (side, root)

    def _away(self) -> set[int]:
        return {i for i, each in enumerate(self.reading) if each.state is not State.CLOSED}

    def _cut(self, run: KeyRun, away: set[int]) -> KeyRun:
        good = []
        for key in run.keys:
            if self._shelf.root_of(key) not in away:
                good.append(key)
            elif run.is_prefix:
                break
        return replace(run, keys=good)

    def _answered(self, root: int, result: JobResult) -> None:
        self._pinged.remove(root)
        if result.statuses[0] in (FileStatus.OK, FileStatus.NOT_FOUND):
            self.reading[root].answered()
        else:
            self.reading[root].not_answered(time.monotonic())

    def _tell(self, root: int, side: str, breaker: Breaker) -> None:
        path = self._shelf.roots[root]
        name = side if len(self.reading) == 1 else f"{side} of {path}"
        for change in breaker.take_changes():
            self._stats.gauge(metrics.BREAKER_STATE, change.state, side, path)
            if change.state is State.OPEN:
                self._stats.count(metrics.BREAKER_OPENINGS, side, path)
                self._logger.warning(
                    "kvshelf: %s is suspended (%s); tried again every %s s",
                    name,
                    change.cause,
                    self._retry_seconds,
                )
            elif change.state is State.CLOSED:
                self._logger.warning("kvshelf: %s goes on after %.1f s", name, change.open_seconds)
