"""The directory that an evictor works on: its marker, its volume and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from kvshelf.disk.clock import FileClock, boot_ns_now
from kvshelf.disk.keeper import RootKeeper
from kvshelf.disk.root import check_root
from kvshelf.disk.volume import Volume, volume_of
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict.refresh import Use


class RootWatch:
    """
    Args:
        clock: the file system's; None: one of its own.
        keeps_marker: whether a marker that a purge took is written again.

    Attributes:
        clock: the file system's.
        ahead_ns: of the time from which ages count, to CLOCK_BOOTTIME; see ``look_at_clock``.

    Raises:
        NotAShelfError: the root carries no marker that we know.
        OSError: it cannot be looked at.

    Threads: one.
    """

    def __init__(self, root: Path, clock: FileClock | None, *, keeps_marker: bool) -> None:
        self._root = root
        check_root(root)
        self._keeper = RootKeeper(root, hold=False) if keeps_marker else None
        self.clock = clock or FileClock(root)
        self.ahead_ns = 0
        self._identity = self._look()

    def check(self) -> None:
        """A mount may go away or be replaced: what lies there then is not ours.

        Raises:
            NotAShelfError: it is no shelf, or another directory than it was.
            OSError: it cannot be looked at.
        """
        if self._keeper is not None:
            self._keeper.keep()
        check_root(self._root)
        if self._look() != self._identity:
            raise NotAShelfError(f"{self._root} is another directory than it was")

    def volume(self) -> Volume:
        return volume_of(self._root)

    def use(self) -> Use:
        return Use.of(self.volume())

    def now_ns(self) -> int:
        """Nanoseconds since 1970 by the clock from which ages count."""
        return boot_ns_now() + self.ahead_ns

    def look_at_clock(self, newest_ns: Callable[[], int]) -> None:
        """Ages count by the file system's clock; where it cannot be measured, by this machine's, or
        by the newest use if that is ahead of it."""
        reading, boot_ns = self.clock.read(), boot_ns_now()
        if reading is not None:
            self.ahead_ns = reading.ahead_ns
        else:
            self.ahead_ns = max(time.time_ns(), newest_ns()) - boot_ns

    def _look(self) -> tuple[int, int]:
        found = self._root.stat()
        return found.st_dev, found.st_ino
