"""Whose turn it is to evict, and where that is written down: what engines and the command share."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kvshelf.disk.keeper import RootKeeper
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict.journal import RemovedWriter
from kvshelf.upkeep.evict.lease import Lease, open_lease
from kvshelf.upkeep.evict.room import RoomRequests

# The folder of the journal is cleaned so often, by the holder.
CLEAN_SECONDS = 60.0
# Whoever holds the lease and cannot evict leaves it to another for so long: twice as long each
# time, from the shorter one on.
STAND_BACK_SECONDS, STAND_BACK_SECONDS_MAX = 10.0, 30.0
_FULL = (errno.ENOSPC, errno.EDQUOT)

OnFault = Callable[[str, Exception], None]
"""Called with what was tried and the error, which did no harm."""


class Turn:
    """One thread.

    Args:
        lease_seconds: see ``Lease``.
        on_fault: told of a lease or journal that cannot be used.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        lease_seconds: float,
        on_fault: OnFault,
        dir_mode: int = 0o2770,
        file_mode: int = 0o640,
        lease: Lease | None = None,
    ) -> None:
        self._lease = lease or open_lease(
            root, lease_seconds=lease_seconds, dir_mode=dir_mode, file_mode=file_mode
        )
        self._writer = RemovedWriter(
            root, self._lease.token, dir_mode=dir_mode, file_mode=file_mode
        )
        self._requests = RoomRequests(root, file_mode=file_mode)
        self._on_fault = on_fault
        self._clean_at = 0.0
        self._root, self._file_mode = Path(root), file_mode
        self._keeper: RootKeeper | None = None
        self._back_seconds = 0.0
        self._back_until = 0.0

    @property
    def failure(self) -> Exception | None:
        """Why the lease cannot be used; None if it can, whoever holds it."""
        return getattr(self._lease, "failure", None)

    @property
    def holder(self) -> str:
        """The other process that holds the lease; see ``Lease.holder``."""
        return self._lease.holder

    @property
    def stands_back(self) -> bool:
        """Whether ``stand_back`` still holds."""
        return time.monotonic() < self._back_until

    def is_ours(self) -> bool:
        """Whether this process may evict for a moment. Ask before every step."""
        if self.stands_back:
            return False
        self._keep_marker()
        try:
            if not self._lease.tick():
                self._requests.forget()
                return False
        except OSError as error:
            self._on_fault("lease", error)
            # On a disk so full that not even a name can change, somebody must begin. If several
            # do, they remove what one would have removed.
            return error.errno in _FULL
        except Exception as error:
            self._on_fault("lease", error)
            return False
        if time.monotonic() >= self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_SECONDS
            self._tried("journal", self._writer.clean)
        return True

    def _tried(self, part: str, call: Callable[[], object]) -> bool:
        """Whether the call says yes; False if it fails, which is told."""
        try:
            return bool(call())
        except Exception as error:
            self._on_fault(part, error)
            return False

    def is_room_wanted(self) -> bool:
        """Whether an engine's stores have failed for lack of room. For the holder."""
        return self._tried("room", self._requests.heard)

    def ask_for_room(self) -> bool:
        """Tell the holder that stores fail for lack of room; False if it cannot be told."""
        return self._tried("room", self._requests.ask)

    def _keep_marker(self) -> None:
        """Without it neither the lease's folder can be made again nor anything be removed."""
        # What is wrong with the root, the lease says.
        with contextlib.suppress(OSError, NotAShelfError):
            if self._keeper is None:
                self._keeper = RootKeeper(self._root, file_mode=self._file_mode)
            self._keeper.keep()
            self._keeper.follow()

    def removed(self, folder: str, rank: int, keys: Sequence[bytes]) -> None:
        """Write down what is gone; an ``OnRemoved``."""
        del rank  # a chunk of which one rank's file is gone is gone
        self._tried("journal", lambda: self._writer.append(folder, keys))

    def stand_back(self) -> None:
        """This process cannot evict: leave the lease to another, and do not ask for a while."""
        doubled = max(STAND_BACK_SECONDS, 2 * self._back_seconds)
        self._back_seconds = min(doubled, STAND_BACK_SECONDS_MAX)
        self._back_until = time.monotonic() + self._back_seconds
        self.leave()

    def succeeded(self) -> None:
        """This process can evict: the next time to stand back is a short one again."""
        self._back_seconds = 0.0

    def leave(self) -> None:
        """Let another have it at once."""
        self._tried("lease", self._lease.release)
