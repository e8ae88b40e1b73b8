"""One evictor at a time, over any number of hosts: a lease whose file's name is all there is.

    <root>/evict/lease-<term>-<beat>-<token>-<owner or "free">       an empty file

Who takes, renews or frees the lease renames that file, from the name that it saw to the next one.
``rename`` of a name that is gone fails, in one atomic step, where the names are kept: so of several
who saw the same state one wins, and nobody wins with a state that a cache made up. The holder has
no other way to renew, and so learns of a loss at its next renewal at the latest.

No clock is compared with another host's. A lease is dead when its name has not changed for
``lease_seconds`` of the observer's own clock, or when its owner is seen to be dead from here. The
holder counts itself out after two thirds of that time, before anybody else counts it out.

A rename needs no room, so the lease works on a full disk. Two holders at once are possible all the
same (docs/explain/eviction.md, "Who evicts"), and must be harmless. Source: rename(2).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from kvshelf.disk.layout import (
    EVICT_FOLDER,
    LeaseName,
    TempOwner,
    parse_lease_name,
)
from kvshelf.disk.owner import Users
from kvshelf.disk.this_process import is_gone, this_owner
from kvshelf.upkeep.evict.folders import opened

# What the first process that uses a shelf finds to take.
_SEED = LeaseName(term=0, beat=0, token="0" * 16, owner=None)
# A holder trusts its lease for this share of lease_seconds after a renewal began; everybody looks
# at it, and the holder renews it, in steps of the other.
_TRUSTED_SHARE = 2 / 3
_LOOK_SHARE = 1 / 3


def boot_seconds() -> float:
    """Seconds since boot, suspended ones too: after a sleep a holder must doubt its lease."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseFolder:
    """``<root>/evict``; made when it is not there, with the first lease in it.

    Every call may raise OSError.
    """

    def __init__(self, root: str | os.PathLike[str], *, dir_mode: int, file_mode: int) -> None:
        self._root = Path(root)
        self._dir_mode = dir_mode
        self._file_mode = file_mode

    def names(self) -> list[str]:
        with self._opened() as folder:
            return os.listdir(folder)  # noqa: PTH208 - a descriptor

    def create(self, name: str) -> None:
        """An empty file; one that is there is fine."""
        with self._opened() as folder:
            self._create(folder, name)

    def rename(self, old: str, new: str) -> bool:
        """False if ``old`` is not there."""
        with self._opened() as folder:
            try:
                os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)
            except FileNotFoundError:
                return False
            return True

    def remove(self, name: str) -> None:
        """One that is not there is fine."""
        with self._opened() as folder, contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)

    def _opened(self) -> contextlib.AbstractContextManager[int]:
        # Only who made the folder makes the first lease: so there is one.
        return opened(
            self._root,
            EVICT_FOLDER,
            dir_mode=self._dir_mode,
            when_made=lambda folder: self._create(folder, str(_SEED)),
        )

    def _create(self, folder: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileExistsError):
            file = os.open(name, flags, self._file_mode, dir_fd=folder)
            try:
                Users.of(folder).give(file, self._file_mode)
            finally:
                os.close(file)


class Lease:
    """This process's view of a shelf's lease. One thread.

    Args:
        folder: where its file lies; ``open_lease`` gives the real one.
        lease_seconds: an unchanged lease is taken over after so long.
        owner: this process.
        clock: this process's own seconds; never another's.
        is_dead: whether an owner is known to be gone (None: nobody can say).
    """

    def __init__(
        self,
        folder: LeaseFolder,
        *,
        lease_seconds: float,
        owner: TempOwner,
        clock: Callable[[], float] = boot_seconds,
        is_dead: Callable[[TempOwner], bool | None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._lease_seconds = lease_seconds
        self._owner = owner
        self._clock = clock
        self._is_dead = is_dead
        self.token = secrets.token_hex(8)  # names this holder
        self._mine: LeaseName | None = None  # as it was last written, or may have been
        self._trusted_until = float("-inf")
        self._look_at = float("-inf")
        self._watched: LeaseName | None = None
        self._watched_since: float | None = None
        self.taken = 0  # times that this process took it
        self.lost = 0  # times that another took it from this process
        self.failure: Exception | None = None  # why the last look at the folder failed

    @property
    def is_held(self) -> bool:
        """Whether this process may count itself the holder right now. No system call."""
        return self._clock() < self._trusted_until

    @property
    def holder(self) -> str:
        """The other process that held the lease at the last look, as "host, process N"; "" if
        there was none."""
        owner = self._watched.owner if self._mine is None and self._watched is not None else None
        return "" if owner is None else f"{owner.host}, process {owner.pid}"

    def tick(self) -> bool:
        """Take, renew or watch the lease, whatever is due; True if this process holds it now.

        Touches the folder once in a third of ``lease_seconds``. Call it between any two batches of
        deletions, and at least so often.

        Raises:
            OSError: the folder cannot be used. The lease then counts as not held, and is taken up
                again later if nobody else has it.
        """
        now = self._clock()
        if now < self._look_at:
            return now < self._trusted_until
        self._look_at = now + _LOOK_SHARE * self._lease_seconds
        try:
            is_ours = self._look(now)
        except Exception as error:
            self._trusted_until = float("-inf")
            self.failure = error
            raise
        self.failure = None
        self._trusted_until = now + _TRUSTED_SHARE * self._lease_seconds if is_ours else now
        return self.is_held

    def release(self) -> None:
        """Leave the lease to whoever looks next.

        Raises:
            OSError: it could not be left; it is taken over when its time is over.
        """
        mine, self._mine = self._mine, None
        self._trusted_until = float("-inf")
        if mine is not None:
            free = LeaseName(mine.term, mine.beat + 1, mine.token, None)
            self._folder.rename(str(mine), str(free))

    def _look(self, now: float) -> bool:
        found = [lease for name in self._folder.names() if (lease := parse_lease_name(name))]
        top = max(found, key=lambda lease: lease.order, default=None)
        if self._mine is not None:
            if self._renewed(self._mine, top, found):
                return True
            self._mine = None
            self.lost += 1
        if self._watched_since is None or top != self._watched:
            self._watched, self._watched_since = top, now
        is_unchanged = now - self._watched_since >= self._lease_seconds
        if top is None:
            # Somebody died between making the folder and the file, or removed it.
            if is_unchanged:
                self._folder.create(str(_SEED))
            return False
        is_free = (
            top.owner is None
            or top.token == self.token  # a rename that was reported as failed
            or is_unchanged
            or self._is_dead(top.owner) is True
        )
        if not is_free:
            return False
        taken = LeaseName(top.term + 1, 0, self.token, self._owner)
        if not self._folder.rename(str(top), str(taken)):
            return False  # another was faster, or renewed it after all
        self._mine = taken
        self.taken += 1
        self._remove_others(found)
        return True

    def _renewed(self, mine: LeaseName, top: LeaseName | None, found: list[LeaseName]) -> bool:
        if top is not None and top.token != self.token and top.order > mine.order:
            return False  # two were made, and this is the lesser: the other removes it
        ours = [lease for lease in found if lease.token == self.token]
        # Where the last rename was reported as failed, either name may be there.
        for name in (mine, *ours):
            renewed = LeaseName(name.term, name.beat + 1, self.token, self._owner)
            if self._folder.rename(str(name), str(renewed)):
                self._mine = renewed
                self._remove_others(found)
                return True
        return False

    def _remove_others(self, found: list[LeaseName]) -> None:
        assert self._mine is not None
        for lease in found:
            if lease.token != self.token and lease.order < self._mine.order:
                self._folder.remove(str(lease))


def open_lease(
    root: str | os.PathLike[str],
    *,
    lease_seconds: float,
    dir_mode: int = 0o2770,
    file_mode: int = 0o640,
) -> Lease:
    """The lease of a shelf, for this process. Makes no file-system call under the root yet."""
    here = this_owner()
    return Lease(
        LeaseFolder(root, dir_mode=dir_mode, file_mode=file_mode),
        lease_seconds=lease_seconds,
        owner=here,
        is_dead=lambda owner: is_gone(owner, here),
    )
