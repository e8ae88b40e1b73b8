"""How an engine whose stores fail for lack of room asks whoever evicts for some.

    <root>/evict/room-<count>       an empty file

To ask is to rename that file to the next count. That needs neither a block nor an inode, so it
works on a full disk and with a full quota. Of several that ask at once one wins, and that is
enough. The holder of the lease makes the file, and looks at its name. Source: rename(2).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from kvshelf.disk.layout import EVICT_FOLDER, parse_room_name, room_name
from kvshelf.upkeep.evict.folders import open_file, opened

# The holder looks so often.
LOOK_SECONDS = 1.0
_COUNT_MAX = 10**10 - 1


class RoomRequests:
    """One thread.

    Args:
        clock: seconds of this process.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        file_mode: int = 0o640,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = Path(root)
        self._file_mode = file_mode
        self._clock = clock
        self._heard: int | None = None
        self._look_at = float("-inf")

    def ask(self) -> bool:
        """Ask for room; False if the folder is absent: then nobody holds the lease.

        Raises:
            OSError: the folder cannot be used.
        """
        try:
            with opened(self._root, EVICT_FOLDER) as folder:
                self._ask(folder)
        except FileNotFoundError:
            return False
        return True

    def _ask(self, folder: int) -> None:
        counts = _counts(folder)
        last = max(counts, default=0)
        new = room_name(last + 1 if last < _COUNT_MAX else 0)
        if not counts:
            _create(folder, new, self._file_mode)
            return
        # A name that is gone was renamed by another that asks.
        with contextlib.suppress(FileNotFoundError):
            os.rename(room_name(last), new, src_dir_fd=folder, dst_dir_fd=folder)

    def heard(self) -> bool:
        """Whether somebody asked since the last call; not by the first. For the holder.

        Raises:
            OSError: the folder cannot be used.
        """
        now = self._clock()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        counts = [0]
        with contextlib.suppress(FileNotFoundError), opened(self._root, EVICT_FOLDER) as folder:
            counts = sorted(_counts(folder))
            if not counts:
                _create(folder, room_name(0), self._file_mode)
                counts = [0]
            for count in counts[:-1]:  # two were made at once
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(room_name(count), dir_fd=folder)
        is_new = self._heard is not None and counts[-1] != self._heard
        self._heard = counts[-1]
        return is_new

    def forget(self) -> None:
        """Another holds the lease: what is asked meanwhile is for it."""
        self._heard = None


def _counts(folder: int) -> list[int]:
    names = os.listdir(folder)
    return [count for name in names if (count := parse_room_name(name)) is not None]


def _create(folder: int, name: str, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        file = open_file(folder, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        if file is not None:
            os.close(file)
