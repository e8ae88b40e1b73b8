"""Removes what dead writers left, before good chunks go: temp files, and scratch folders of a bench
or a doctor. Scrub judges them (``scrub.orphans``): those of living writers stay, and those
of writers that cannot be looked for, unless nobody has written to them for 24 hours."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kvshelf.disk.layout import TEMP_FOLDER
from kvshelf.disk.tree import GONE, entries, folder_at, root_at
from kvshelf.disk.walk import What, what_is
from kvshelf.upkeep.evict.limits import Amount
from kvshelf.upkeep.scrub.findings import Action, Kind
from kvshelf.upkeep.scrub.mount import temp_file
from kvshelf.upkeep.scrub.orphans import Orphans
from kvshelf.upkeep.scrub.settings import ScrubSettings

# While room is needed they are looked for so often.
LOOK_SECONDS = 60.0


class Leftovers:
    """One thread.

    Args:
        dry_run: count, remove nothing.
        clock: seconds of this process.

    Attributes:
        faults: how often each errno came since ``step`` began to look.
    """

    def __init__(
        self, root: Path, *, dry_run: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._dry_run = dry_run
        self._clock = clock
        self._due = float("-inf")
        self._work: Iterator[Amount] | None = None
        self.faults: Counter[int] = Counter()

    @property
    def is_due(self) -> bool:
        """Whether there may be something that was not looked at."""
        return self._work is not None or self._clock() >= self._due

    def step(
        self, folders: Sequence[str], seconds_max: float, stopped: Callable[[], bool]
    ) -> Amount:
        """Remove for about so long what dead writers left in the root and in these namespaces; the
        next call goes on with it until ``is_due`` is false.

        Raises:
            OSError: the root cannot be opened.
        """
        if self._work is None:
            self._work = self._all(folders)
        end = self._clock() + seconds_max
        removed = Amount()
        for amount in self._work:
            removed += amount
            if stopped() or self._clock() >= end:
                return removed
        self._work, self._due = None, self._clock() + LOOK_SECONDS
        return removed

    def _all(self, folders: Sequence[str]) -> Iterator[Amount]:
        """One amount an entry, often nothing."""
        with root_at(self._root) as root:
            age_seconds = 3600 * ScrubSettings().temp_hours
            orphans = Orphans(_now(root), age_seconds, dry_run=self._dry_run)
            for folder in folders:
                yield from self._temp_folder(root, folder, orphans)
            try:
                for name, kind in entries(root):
                    what = what_is("", name, kind)
                    if what is What.TEMP:
                        yield self._judged(orphans, root, name, name)
                    elif what is What.SCRATCH:
                        yield self._judged_scratch(orphans, root, name)
            except OSError as error:
                self._fault(error)

    def _temp_folder(self, root: int, name: str, orphans: Orphans) -> Iterator[Amount]:
        try:
            with folder_at(root, name) as namespace, folder_at(namespace, TEMP_FOLDER) as folder:
                if os.fstat(folder).st_dev != os.fstat(root).st_dev:
                    return
                for entry in entries(folder):
                    yield self._judged(orphans, folder, entry.name, f"{name}/{entry.name}")
        except OSError as error:
            self._fault(error)

    def _judged(self, orphans: Orphans, folder: int, name: str, path: str) -> Amount:
        try:
            seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            self._fault(error)
            return Amount()
        # A chunk that was published by link(2) keeps the blocks.
        size = seen.st_size if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1 else 0
        found = list(orphans.judge(folder, name, path))
        self.faults[errno.EIO] += sum(each.kind is Kind.FAULT for each in found)
        return (
            Amount(1, size) if any(each.action is not Action.KEPT for each in found) else Amount()
        )

    def _judged_scratch(self, orphans: Orphans, root: int, name: str) -> Amount:
        held = Amount()
        try:
            for _, _, names, folder in os.fwalk(name, dir_fd=root):
                for each in names:
                    size = os.stat(each, dir_fd=folder, follow_symlinks=False).st_size
                    held += Amount(1, size)
        except OSError as error:
            self._fault(error)
        found = list(orphans.judge_scratch(root, name))
        self.faults[errno.EIO] += sum(each.kind is Kind.FAULT for each in found)
        return held if any(each.action is not Action.KEPT for each in found) else Amount()

    def _fault(self, error: OSError) -> None:
        if error.errno not in (*GONE, errno.ELOOP):
            self.faults[error.errno or errno.EIO] += 1


def _now(root: int) -> float | None:
    """The file system's clock; None if it takes no file: then no file is old."""
    try:
        with temp_file(root) as (descriptor, _):
            return os.fstat(descriptor).st_mtime
    except OSError:
        return None
