"""Folders by descriptor: listing, opening and removing without following a link. Any thread."""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import operator
import os
import time
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from kvshelf.disk.junk import is_junk

# Names held in memory at once. A folder of kvshelf's has 3,000; one with more is listed again.
NAMES_MAX = 10_000
# Folders in folders that are removed with a tree; a bench has 5.
DEPTH_MAX = 16
# What a path says that is not there any more; ESTALE: removed by another client of the storage.
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


# A folder of removed files that are still open is tried for 2.5 s.
_RMDIR_ATTEMPTS, _RMDIR_SECONDS = 50, 0.05


class StillOpenError(OSError):
    """Nothing is left in a folder but removed files that a process still has open."""


class Type(Enum):
    FILE = "file"
    FOLDER = "folder"
    OTHER = "other"  # a link, a pipe, a socket or a device


class Entry(NamedTuple):
    name: str
    type: Type


_NAME = operator.attrgetter("name")


def entries(folder: int, after: str = "", *, inclusive: bool = False) -> Iterator[Entry]:
    """Entries of a folder in order of their names, those behind ``after`` only, or from it on.

    Junk is left out. Memory is bounded however many there are;
    the folder may change meanwhile.

    Raises:
        OSError: it cannot be listed.
    """
    while True:
        with os.scandir(folder) as scan:
            typed = _typed(scan, after, inclusive)
            batch = list(itertools.islice(typed, NAMES_MAX + 1))
            if len(batch) > NAMES_MAX:
                batch = heapq.nsmallest(NAMES_MAX, itertools.chain(batch, typed), key=_NAME)
            else:
                batch.sort(key=_NAME)
        yield from batch
        if len(batch) < NAMES_MAX:
            return
        after, inclusive = batch[-1].name, False


def _typed(scan: Iterable[os.DirEntry[str]], after: str, inclusive: bool) -> Iterator[Entry]:
    for entry in scan:
        name = entry.name
        before = name < after or (name == after and not inclusive)
        if before or is_junk(name):
            continue
        if entry.is_file(follow_symlinks=False):  # most are
            yield Entry(name, Type.FILE)
        else:
            is_folder = entry.is_dir(follow_symlinks=False)
            yield Entry(name, Type.FOLDER if is_folder else Type.OTHER)


@contextlib.contextmanager
def root_at(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor of a directory that a user named; it may be a link.

    Raises:
        OSError: it cannot be opened, or is no directory.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_at(parent: int | None, name: str | Path) -> Iterator[int]:
    """A descriptor of a folder; if it is a link it is not followed.

    Args:
        parent: descriptor of the folder that ``name`` is in; None: ``name`` is a path.

    Raises:
        OSError: it cannot be opened, or is no folder.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_tree(parent: int, name: str, device: int, *, last: str = "", depth: int = 0) -> None:
    """Remove a folder and all that is in it but junk. Follows no link.

    What cannot be removed stays with the folders that it is in and with ``last``; the rest goes.

    Args:
        device: of the file system that it must all be on (st_dev).
        depth: of the folder in the tree.
        last: name of the entry that goes after all others: it says that the others may go.

    Raises:
        StillOpenError: it is empty but for what processes of this host have open.
        OSError: the first of what cannot be removed; another file system is mounted there
            (EXDEV), or it is deeper than anything of kvshelf's (ELOOP).
    """
    if depth > DEPTH_MAX:
        raise OSError(errno.ELOOP, "it is too deep to be kvshelf's", name)
    with folder_at(parent, name) as folder:
        if os.fstat(folder).st_dev != device:
            raise OSError(errno.EXDEV, "another file system is mounted in it", name)
        refused: OSError | None = None
        for entry in entries(folder):
            try:
                if entry.type is Type.FOLDER:
                    remove_tree(folder, entry.name, device, depth=depth + 1)
                elif entry.name != last:
                    os.unlink(entry.name, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.ELOOP):
                    raise
                refused = refused or error
        if refused is not None:
            raise refused
        # A folder that junk has kept is to go later, by what the last entry says.
        if last and all(entry.name == last for entry in entries(folder)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(last, dir_fd=folder)
    _remove_folder(parent, name)


def _remove_folder(parent: int, name: str) -> None:
    """rmdir. Junk is not ours to remove, and keeps its folder.

    Tried again for a while where only names of an NFS client are left: it keeps a file that was
    removed as ``.nfs...`` while it is open, and NFS 4 closes in the background.
    """
    for _ in range(_RMDIR_ATTEMPTS):
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            with folder_at(parent, name) as folder:
                if next(entries(folder), None) is not None:
                    raise
                if not any(entry.startswith(".nfs") for entry in os.listdir(folder)):  # noqa: PTH208
                    return
        else:
            return
        time.sleep(_RMDIR_SECONDS)
    raise StillOpenError(errno.ENOTEMPTY, "removed files in it are still open", name)


def unlink_if_same(folder: int, name: str, seen: os.stat_result) -> bool:
    """Remove a file if the name is still that of the file that was seen.

    The caller holds a descriptor of that file, so that its inode is not used again. Between the
    look and the removal another process may remove the file and publish a good one under its name,
    which is then lost: a miss, later. POSIX has no call that does both in one.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        now = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not os.path.samestat(now, seen):
            return False
        os.unlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
    return True
