"""Keeps a root a shelf while it is used: a purge of old files takes its marker."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

from kvshelf.disk.layout import MARKER
from kvshelf.disk.root import check_root, publish_marker


class RootKeeper:
    """Writes the marker of a shelf again when that is absent.

    The proof is the inode: the directory at the path must still be the one that carried the marker
    at the start. A mount point whose file system is away, or another directory under the name, gets
    none.

    Args:
        root: a shelf.
        file_mode: of the marker.
        hold: keep the directory open, so that its inode is not used again; False: the caller does.

    Raises:
        NotAShelfError: its marker is damaged or of another version.
        OSError: it cannot be opened, or has no marker.

    Threads: one. ``close``, or the collector, closes the descriptor.
    """

    def __init__(self, root: Path, *, file_mode: int = 0o640, hold: bool = True) -> None:
        self._root, self._file_mode, self._holds = root, file_mode, hold
        self._keep(_opened(root))

    def _keep(self, descriptor: int) -> None:
        self._seen = os.fstat(descriptor)
        self._close = weakref.finalize(self, _close, descriptor)
        if not self._holds:
            self._close()

    def keep(self) -> bool:
        """Write the marker if it is absent; whether that was done. One call if it is there.

        Raises:
            OSError: it cannot be written, or the root does not answer.
        """
        if os.path.lexists(self._root / MARKER):
            return False
        # ENOENT of a root that is away is the caller's to tell.
        if not os.path.samestat(self._root.stat(), self._seen):
            return False
        publish_marker(self._root, self._file_mode)
        return True

    def follow(self) -> None:
        """Hold the directory that is at the path now, if it is a shelf: another file system may
        have been mounted, and the old one is to be let go.

        Raises:
            NotAShelfError, OSError: it is none, or cannot be opened.
        """
        if os.path.samestat(self._root.stat(), self._seen):
            return
        other = _opened(self._root)
        self._close()
        self._keep(other)

    def close(self) -> None:
        """Let the directory go; twice is fine."""
        self._close()


def _opened(root: Path) -> int:
    """A directory that carries our marker."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check_root("", dir_fd=descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # of a mount that is away: it is closed all the same
        os.close(descriptor)
