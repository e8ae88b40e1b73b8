"""Opens the two small folders beside a shelf's namespaces. Follows no link; makes them only in a
directory that carries our marker."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from kvshelf.disk.owner import Users, explained, finish_folder
from kvshelf.disk.root import check_root
from kvshelf.disk.tree import root_at

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIR_MODE = 0o2770


@contextlib.contextmanager
def opened(
    root: Path,
    name: str,
    *,
    dir_mode: int | None = None,
    when_made: Callable[[int], None] = lambda _: None,
) -> Iterator[int]:
    """A descriptor of ``<root>/<name>``, opened anew: an NFS client asks its server then.

    Args:
        dir_mode: makes the folder if it is not there; None: that raises FileNotFoundError.
        when_made: called with the descriptor by the process that made it, and by no other.

    Raises:
        OSError: it cannot be opened, is a link or no folder.
        NotAShelfError: it is not there, and the root is no shelf.
    """
    try:
        with root_at(root) as parent:
            try:
                folder = os.open(name, _FLAGS, dir_fd=parent)
            except FileNotFoundError:
                if dir_mode is None:
                    raise
                folder = _made(root, parent, name, dir_mode, when_made)
        try:
            yield folder
        finally:
            os.close(folder)
    except PermissionError as error:
        raise explained(root, name, error, dir_mode or _DIR_MODE) from error


def _made(
    root: Path, parent: int, name: str, dir_mode: int, when_made: Callable[[int], None]
) -> int:
    check_root(root)  # an unmounted mount point is no shelf
    try:
        os.mkdir(name, dir_mode, dir_fd=parent)
    except FileExistsError:
        return os.open(name, _FLAGS, dir_fd=parent)
    folder = os.open(name, _FLAGS, dir_fd=parent)
    try:
        finish_folder(folder, dir_mode, Users.of(parent))
        when_made(folder)
    except BaseException:
        os.close(folder)
        raise
    return folder


def open_file(folder: int, name: str, flags: int, mode: int = 0) -> int | None:
    """A descriptor of a regular file of a folder; None if it is not there, or something else.

    One that O_CREAT makes gets the folder's owner and group, as the folder has the root's.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for its other end.
        extra = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(name, flags | extra, mode, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ESTALE, errno.ENXIO, errno.EISDIR):
            return None
        raise
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode):
        if flags & os.O_CREAT and not found.st_size:
            Users.of(folder).give(file, mode)
        return file
    os.close(file)
    return None
