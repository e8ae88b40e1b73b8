"""Gives folders of kvshelf's that the superuser has made by mistake back to a root's users.

For commands that run as root on a shelf of others: what an older kvshelf, a restored backup or a
copy left there with root's owner keeps engines from working. Any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from kvshelf.disk.layout import (
    NAMESPACE_FILE,
    ROOT_FILES,
    ROOT_FOLDERS,
    TEMP_FOLDER,
    is_hash_folder,
    is_namespace_folder,
    parse_rank_folder,
)
from kvshelf.disk.owner import Users
from kvshelf.disk.root import check_root
from kvshelf.disk.tree import Type, entries, root_at

_DIR_MODE, _FILE_MODE = 0o2770, 0o640
# A command does not wait longer for it; the next run goes on.
_SECONDS_MAX = 5.0


def mend_owners(root: Path) -> list[str]:
    """Mend the owner, group and group's permissions of folders of ours; paths of what was mended.

    Does nothing unless this process is the superuser's. Only in a directory that carries our
    marker, only what has a name of ours and lies on the root's file system, through no link, and no
    file that has a second name. What is right is not looked into below the ranks. After 5 s the
    rest is left to the next run: there may be 100,000 ranks on a slow mount.

    Raises:
        NotAShelfError: the root's marker is damaged or of another version.
        OSError: there is none, or the root cannot be listed.
    """
    if os.geteuid() != 0:
        return []
    with root_at(root) as descriptor:
        check_root("", dir_fd=descriptor)
        return _Mender(descriptor).run()


class _Mender:
    def __init__(self, root: int) -> None:
        self._root, self._users = root, Users.of(root)
        self._device = os.fstat(root).st_dev
        self._mended: list[str] = []
        self._end = time.monotonic() + _SECONDS_MAX

    def run(self) -> list[str]:
        spaces = []
        for name, kind in entries(self._root):
            if kind is Type.FILE and name in ROOT_FILES:
                self._mend(self._root, name, name, kind)
            elif kind is Type.FOLDER and name in ROOT_FOLDERS:
                self._inside(name)
            elif kind is Type.FOLDER and is_namespace_folder(name):
                spaces.append(name)
        for name in spaces:  # last: there may be very many
            self._namespace(name)
        return self._mended

    def _is_late(self) -> bool:
        return time.monotonic() > self._end

    def _namespace(self, name: str) -> None:
        with self._opened(self._root, name, name) as space:
            if space is None:
                return
            for entry in entries(space):
                if self._is_late():
                    return
                path, is_folder = f"{name}/{entry.name}", entry.type is Type.FOLDER
                if is_folder and parse_rank_folder(entry.name) is not None:
                    self._rank(space, entry.name, path)
                elif entry.name == (TEMP_FOLDER if is_folder else NAMESPACE_FILE):
                    self._mend(space, entry.name, path, entry.type)

    def _rank(self, space: int, name: str, path: str) -> None:
        # A rank has 4,096 folders: they are looked at if the rank's own was wrong.
        before = len(self._mended)
        with self._opened(space, name, path) as rank:
            if rank is None or len(self._mended) == before:
                return
            for entry in entries(rank):
                if self._is_late():
                    return
                if entry.type is Type.FOLDER and is_hash_folder(entry.name):
                    self._mend(rank, entry.name, f"{path}/{entry.name}", entry.type)

    def _inside(self, name: str) -> None:
        with self._opened(self._root, name, name) as folder:
            if folder is not None:
                for entry in entries(folder):
                    if entry.type is Type.FILE:
                        self._mend(folder, entry.name, f"{name}/{entry.name}", Type.FILE)

    @contextlib.contextmanager
    def _opened(self, parent: int, name: str, path: str) -> Iterator[int | None]:
        """A folder, mended; None if it is another file system's, or cannot be opened."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(name, flags, dir_fd=parent)
        except OSError:
            yield None
            return
        try:
            if os.fstat(folder).st_dev != self._device:
                yield None
            else:
                self._set_right(folder, path, _DIR_MODE)
                yield folder
        finally:
            os.close(folder)

    def _mend(self, parent: int, name: str, path: str, kind: Type) -> None:
        if kind is Type.FOLDER:
            with self._opened(parent, name, path):
                return
        if kind is not Type.FILE:
            return
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(name, flags, dir_fd=parent)
            try:
                found = os.fstat(file)
                is_alone = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
                if is_alone and found.st_dev == self._device:
                    self._set_right(file, path, _FILE_MODE)
            finally:
                os.close(file)

    def _set_right(self, descriptor: int, path: str, mode: int) -> None:
        found, users = os.fstat(descriptor), self._users
        is_shared = bool(users.mode & stat.S_IWGRP)
        user = users.user if found.st_uid == 0 and users.user != 0 else -1
        of_other_group = found.st_gid != users.group and (is_shared or user != -1)
        group = users.group if of_other_group else -1
        missing = users.allowed(mode) & ~found.st_mode
        if stat.S_ISDIR(found.st_mode):
            missing |= users.mode & stat.S_ISGID & ~found.st_mode
        if user == -1 and group == -1 and not missing:
            return
        try:
            if user != -1 or group != -1:
                os.fchown(descriptor, user, group)
            if missing:
                os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | missing)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOTSUP):
                raise
            return
        self._mended.append(path)
