"""A chunk file held open, so that it, and no other file of its name, can be removed.

The guards are those of the native core and of ``kvshelf scrub``: only under a root that carries our
marker, no link is followed, and the name must still be that of the file held. Any thread; waits for
storage.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from kvshelf.disk.root import check_root
from kvshelf.disk.tree import folder_at, unlink_if_same


@dataclass(frozen=True, slots=True)
class HeldFile:
    """
    Attributes:
        folder: descriptor of the folder that the file was found in.
        seen: of the file, whose descriptor is open.
    """

    folder: int
    name: str
    seen: os.stat_result

    def remove(self) -> bool:
        """Take the name away; False if it is another file's by now, or absent.

        Raises:
            OSError: it cannot be removed.
        """
        return unlink_if_same(self.folder, self.name, self.seen)


@contextlib.contextmanager
def hold(root: str, path: str) -> Iterator[HeldFile]:
    """Hold the chunk file at ``path``, relative to the root.

    Raises:
        NotAShelfError: the root's marker is damaged or of another version.
        OSError: there is no marker, no such file, or it or a folder above it is a link.
    """
    *folders, name = path.split("/")
    with contextlib.ExitStack() as stack:
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, at)
        check_root("", dir_fd=at)
        for folder in folders:
            at = stack.enter_context(folder_at(at, folder))
        file = _open(at, name)
        stack.callback(os.close, file)
        seen = os.fstat(file)
        if not stat.S_ISREG(seen.st_mode):
            raise OSError(errno.ELOOP, "no regular file", path)
        yield HeldFile(at, name, seen)


def _open(folder: int, name: str) -> int:
    # Looked at before: to open a device may do something.
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise OSError(errno.ELOOP, "no regular file", name)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=folder)
