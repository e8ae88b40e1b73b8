"""Gives what is made inside a root to those that the root is for, whoever makes it.

The root directory says who they are: its owner, its group and its mode.

- What the superuser makes gets the root's owner and group.
- What another user makes gets the root's group, if the kernel lets the user give it (chown(2)).
- Where the root's group may write, folders and files get what the settings allow the group,
  whatever the umask is; likewise for all users. Another group than the root's gets nothing.

Everything goes through descriptors, so no link is followed. ``RootDir::GiveToUsers`` of the native
core does the same. Threads: any. Sources: chown(2), chmod(2), inode(7), umask(2).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_logger = logging.getLogger(__name__)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Users:
    """Whom a root is for: ``st_uid``, ``st_gid`` and the permissions of its directory."""

    user: int
    group: int
    mode: int

    @classmethod
    def of(cls, root: str | os.PathLike[str] | int) -> Users:
        """
        Raises:
            OSError: the root cannot be looked at.
        """
        found = os.stat(root)  # noqa: PTH116 - a descriptor, too
        return cls(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))

    def give(self, descriptor: int, mode: int) -> None:
        """Give them a file or folder that this process has just made.

        Args:
            mode: of the settings: ``dir_mode`` or ``file_mode``.
        """
        made = os.fstat(descriptor)
        has_group = made.st_gid == self.group
        as_superuser = os.geteuid() == 0
        user = self.user if as_superuser and made.st_uid != self.user else -1
        if user != -1 or not has_group:
            try:
                os.fchown(descriptor, user, -1 if has_group else self.group)
                has_group = True
            except OSError as error:
                if as_superuser and stat.S_ISDIR(made.st_mode):
                    self._say_refused(made, error)
        with contextlib.suppress(OSError):  # a mount that refuses decides itself who may use it
            before = stat.S_IMODE(os.fstat(descriptor).st_mode)
            wanted = before | self.allowed(mode, has_group=has_group)
            if wanted != before:
                os.fchmod(descriptor, wanted)

    def allowed(self, mode: int, *, has_group: bool = True) -> int:
        """The permissions that they get whatever the umask is."""
        bits = 0
        if has_group and self.mode & stat.S_IWGRP:
            bits |= mode & self.mode & stat.S_IRWXG
        if self.mode & stat.S_IWOTH:
            bits |= mode & self.mode & stat.S_IRWXO
        return bits

    def _say_refused(self, made: os.stat_result, error: OSError) -> None:
        """As with root_squash of NFS: what the superuser makes there is another user's."""
        _logger.warning(
            "kvshelf: a folder stays with user %d and group %d, not the root's %d and %d (%s): "
            "engines may not be able to write to it; run this command as user %d",
            *(made.st_uid, made.st_gid, self.user, self.group, error.strerror, self.user),
        )


def make_folder(path: Path, mode: int, users: Users | None = None) -> bool:
    """mkdir that lets a folder be there, and that sets setgid and sticky bits, as mkdir(2) may not.

    A path that is there and no folder is left alone, for the caller to judge. Returns whether it
    was made.

    Args:
        users: of the root in which it lies; None: it is the root itself.

    Raises:
        OSError: it cannot be made.
    """
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        return False
    # A mode such as 0 keeps its maker out, too: then there is nothing to give.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, _FOLDER)
        try:
            finish_folder(descriptor, mode, users)
        finally:
            os.close(descriptor)
    return True


def give(path: Path, mode: int, users: Users) -> None:
    """As ``Users.give``, of a folder at a path; a link is not followed.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, _FOLDER)
    try:
        users.give(descriptor, mode)
    finally:
        os.close(descriptor)


def finish_folder(descriptor: int, mode: int, users: Users | None) -> None:
    """What ``make_folder`` does to a folder that was just made."""
    if users is not None:
        users.give(descriptor, mode)
    if mode & 0o7000:
        # A mount that refuses decides itself whose group files get; the folder works without.
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) | mode & 0o7000)


def closed(root: Path, name: str) -> str:
    """What keeps this process from writing to a folder of another user, and what mends it; "" if
    nothing does, or nothing is known."""
    # access(2), not faccessat2(2), which some container profiles refuse.
    if os.access(root / name, os.W_OK | os.X_OK):
        return ""
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    error = explained(root, name, denied)
    return "" if error is denied else str(error.strerror)


def say_if_closed(root: Path, name: str) -> None:
    """Log one line if a folder of another user does not let this process write to it."""
    if text := closed(root, name):
        _logger.warning("kvshelf: stores will fail: %s", text)


def explained(root: Path, name: str, error: OSError, mode: int = 0o2770) -> OSError:
    """The error with what mends it, if a folder of another user keeps this one from working.

    Args:
        name: of the folder, relative to the root.
        mode: that it should have.
    """
    path = root / name
    try:
        found, users = path.lstat(), Users.of(root)
    except OSError:
        return error
    if found.st_uid == os.geteuid() or not stat.S_ISDIR(found.st_mode):
        return error
    wanted = users.mode & 0o2777 if users.mode & stat.S_IWGRP else mode
    text = (
        f"{error.strerror}: {path} is of user {found.st_uid} and group {found.st_gid}, mode "
        f"{stat.S_IMODE(found.st_mode):04o}; run as root: chown -R {users.user}:{users.group} "
        f"{path} && chmod {wanted:04o} {path}"
    )
    return OSError(error.errno, text)
