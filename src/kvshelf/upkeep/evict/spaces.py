"""Which folders of a root are namespaces, and what else lies beside them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

from kvshelf.disk.clock import FileClock
from kvshelf.disk.junk import is_junk
from kvshelf.disk.layout import NAMESPACE_FILE, ROOT_FILES, ROOT_FOLDERS, is_namespace_folder
from kvshelf.disk.root import namespace_entry

# The root's time may be so coarse, and a namespace.json comes a moment after its folder.
_RACY_SECONDS = 5.0
_LIST_SECONDS = 60.0
_FOREIGN_MAX = 1000
# What this process or machine lacks says nothing of a namespace.
_OWN_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

# Device, inode, size, modification and change time of a namespace.json.
_Signature = tuple[int, int, int, int, int]


class Spaces:
    """The namespaces of a root, listed again when its modification time has changed.

    A folder counts if its name may be a namespace's and its namespace.json is sound and says so.
    A namespace.json is read again only when its inode or its times have changed.

    Attributes:
        foreign: other entries of the root, as far as is counted. Hidden ones and those that begin
            with "kvshelf" are left out.
        unread: folders that may be namespaces and do not let themselves be read.
    """

    def __init__(self, root: Path, clock: FileClock) -> None:
        self._root = root
        self._clock = clock
        self._listed_at = 0.0  # by the file system's clock
        self._due_at = 0.0  # by CLOCK_MONOTONIC
        self._mtime = -1.0
        self._folders: list[str] = []
        self._sound: dict[str, _Signature] = {}  # by folder
        self.foreign: tuple[str, ...] = ()
        self.unread: tuple[str, ...] = ()

    def list(self) -> list[str]:
        """Names of the folders.

        Raises:
            OSError: the root cannot be listed, or no descriptor is left to look further.
        """
        now = 1e-9 * self._clock.now_ns()
        mtime = self._root.stat().st_mtime
        # A time ahead of the clock says nothing.
        racy = mtime - _RACY_SECONDS < self._listed_at < mtime + _RACY_SECONDS
        if mtime == self._mtime and not racy and time.monotonic() < self._due_at:
            return self._folders
        with os.scandir(self._root) as scan:
            names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in scan}
        self._judge(name for name in names if names[name] and is_namespace_folder(name))
        known = ROOT_FILES | ROOT_FOLDERS | {*self._folders, *self.unread}
        self.foreign = tuple(
            name
            for name in sorted(names.keys() - known)[:_FOREIGN_MAX]
            if not is_junk(name) and not name.startswith((".", "kvshelf"))
        )
        self._listed_at, self._mtime = now, mtime
        # An engine makes a namespace.json that a purge took again, which the root does not tell.
        is_missed = any(map(is_namespace_folder, self.foreign))
        self._due_at = time.monotonic() + (_RACY_SECONDS if is_missed else _LIST_SECONDS)
        return self._folders

    def _judge(self, names: Iterable[str]) -> None:
        """Tell namespaces from folders whose namespace.json is absent, unsound or unreadable."""
        sound: dict[str, _Signature] = {}
        unread = []
        for name in sorted(names):
            signature = self._signature(name)
            if signature is None or self._sound.get(name) != signature:
                entry = namespace_entry(self._root, name)
                if entry is not None and entry.errno:
                    if entry.errno in _OWN_LACK:
                        raise OSError(entry.errno, os.strerror(entry.errno), str(self._root / name))
                    unread.append(name)
                if entry is None or entry.identity is None or entry.problem:
                    continue
            sound[name] = signature or (0, 0, 0, 0, 0)
        self._sound, self._folders, self.unread = sound, list(sound), tuple(unread)

    def _signature(self, name: str) -> _Signature | None:
        """None if it cannot be had."""
        try:
            found = os.lstat(f"{self._root}/{name}/{NAMESPACE_FILE}")  # of 10,000 in a row
        except OSError:
            return None
        times = found.st_mtime_ns, found.st_ctime_ns
        return found.st_dev, found.st_ino, found.st_size, *times
