"""Which folders of a root are namespaces, and what else lies beside them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kvshelf.clock import FileClock
from kvshelf.layout import ROOT_FILES, ROOT_FOLDERS, is_namespace_folder
from kvshelf.root import is_of_file_system, list_namespaces

# The root's time may be so coarse, and a namespace.json comes a moment after its folder.
_RACY_SECONDS = 5.0
_LIST_SECONDS = 60.0
_FOREIGN_MAX = 1000


class Spaces:
    """The namespaces of a root, listed again when its modification time has changed.

    A folder counts if its name may be a namespace's and its namespace.json is sound and says so.

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
        self.foreign: tuple[str, ...] = ()
        self.unread: tuple[str, ...] = ()

    def list(self) -> list[str]:
        """Names of the folders.

        Raises:
            OSError: the root cannot be listed.
        """
        now = 1e-9 * self._clock.now_ns()
        mtime = self._root.stat().st_mtime
        # A time ahead of the clock says nothing.
        racy = mtime - _RACY_SECONDS < self._listed_at < mtime + _RACY_SECONDS
        if mtime == self._mtime and not racy and time.monotonic() < self._due_at:
            return self._folders
        entries = [e for e in list_namespaces(self._root) if is_namespace_folder(e.folder)]
        self._folders = [e.folder for e in entries if e.identity is not None and not e.problem]
        self.unread = tuple(e.folder for e in entries if e.errno)
        known = ROOT_FILES | ROOT_FOLDERS | {*self._folders, *self.unread}
        self.foreign = tuple(
            name
            for name in sorted(os.listdir(self._root))[:_FOREIGN_MAX]  # noqa: PTH208
            if name not in known
            and not is_of_file_system(name)
            and not name.startswith((".", "kvshelf"))
        )
        self._listed_at, self._mtime = now, mtime
        self._due_at = time.monotonic() + _LIST_SECONDS
        return self._folders
