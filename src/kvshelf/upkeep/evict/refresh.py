"""When an evictor looks again at folders that have changed: arithmetic, no I/O."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvshelf.disk.volume import Volume

# A look takes at most this share of the time: while the file system's use does not change, while
# it does, and when it has grown by so much that a limit may be exceeded.
QUIET_SHARE, BUSY_SHARE, URGENT_SHARE = 0.0025, 0.1, 0.5
SECONDS_MIN, SECONDS_MAX = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class Use:
    """What changes when anybody stores or removes, as far as the file system tells at once.

    Attributes:
        is_told: whether it tells anything: else no change may mean nothing.
    """

    bytes: int = -1
    inodes: int = -1
    is_told: bool = True

    @classmethod
    def of(cls, volume: Volume) -> Use:
        return cls(
            volume.used_bytes, volume.used_inodes, volume.counts_bytes or volume.counts_inodes
        )


class RefreshTimes:
    """What the last looks cost, and so when the next is due.

    A look costs what has changed since the one before: nothing, or all that a second evictor has
    removed from every folder. One expensive look says little of the next one, so the cheaper of the
    last two counts. Growth alone cannot tell that the next is urgent: what others remove from the
    file system hides it.

    Threads: one.
    """

    def __init__(self) -> None:
        self._at = -math.inf
        self._use = Use()  # of the file system then
        self._cost_seconds = math.inf  # of the last look
        self._cheaper_seconds = 0.0  # of the last two
        self._seconds = 0.0  # that the one under way has taken so far
        self._use_before = Use()

    def now(self) -> None:
        """Let the next be due at once."""
        self._at = -math.inf

    def is_due(self, now: float, use: Use, is_urgent: bool) -> bool:
        """Whether to look.

        Args:
            now: seconds, monotonic.
            use: of the file system.
            is_urgent: whether what was stored since may exceed a limit.
        """
        changed_share = URGENT_SHARE if is_urgent else BUSY_SHARE
        share = QUIET_SHARE if use == self._use and use.is_told else changed_share
        pause = min(self._cheaper_seconds * (1 / share - 1), SECONDS_MAX)
        return now >= self._at + max(pause, SECONDS_MIN)

    def grown_bytes(self, use: Use, mean_bytes: float) -> int:
        """At most so many bytes were stored since the last look.

        Args:
            mean_bytes: of a chunk file. File systems that have not yet given blocks to what was
                written count its inodes already.
        """
        if math.isinf(self._at):  # it is due anyway
            return 0
        inodes = max(0, use.inodes - self._use.inodes)
        return max(0, use.bytes - self._use.bytes, math.ceil(inodes * mean_bytes))

    def begin(self, use: Use) -> None:
        """A look, or a part of one, begins."""
        if not self._seconds:
            self._use_before = use

    def end(self, now: float, seconds: float, *, is_done: bool) -> None:
        """It ended and took so long."""
        self._seconds += seconds
        if is_done:
            self._at, self._use = now, self._use_before
            self._cheaper_seconds = min(self._cost_seconds, self._seconds)
            self._cost_seconds, self._seconds = self._seconds, 0.0


class Sampling:
    """When removal may begin from a sample of the shelf, because a first scan takes long.

    The scan begins anew after a sample, and has twice the time before the next, so that it ends.
    """

    AFTER_SECONDS, SECONDS_MAX, COVERAGE = 5.0, 60.0, 1 / 16

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._seconds = self.AFTER_SECONDS
        self._helps = True

    def is_due(self, now: float, coverage: Callable[[], float]) -> bool:
        """``coverage``: the share of the folders that were scanned."""
        waited = now - self._since > self._seconds
        return self._helps and waited and coverage() >= self.COVERAGE

    def used(self, now: float, *, has_helped: bool) -> None:
        """A sample was used; one that did not help is the last."""
        self._helps = has_helped
        self._since = now
        self._seconds = min(2 * self._seconds, self.SECONDS_MAX)
