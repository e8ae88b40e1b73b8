"""Recognizes a shelf that has lost its marker, as to a purge of old files. Writes nothing.

A directory without a marker is a shelf if all that lies in it has names and types of ours, and

- a file in it proves that kvshelf made it: a sound namespace.json in the folder that it names, a
  lease, a journal of removed chunks, a scrub's place, a chunk whose header says where it lies; or
- it holds no file at all, only folders of ours: nobody's data can be lost then.

Names alone prove nothing, a link is other data, and a look has a limit. Any thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from kvshelf.disk.documents import read_json
from kvshelf.disk.layout import (
    EVICT_FOLDER,
    NAMESPACE_FILE,
    REMOVED_FOLDER,
    REMOVED_MAGIC,
    ROOT_FOLDERS,
    SCRUB_CURSOR,
    TEMP_FOLDER,
    is_namespace_folder,
    parse_chunk_path,
    parse_lease_name,
    parse_removed_name,
    parse_temp_name,
    short_digest,
)
from kvshelf.disk.namespace import Identity
from kvshelf.disk.tree import Entry, Type, entries, folder_at, root_at
from kvshelf.disk.walk import What, walk, what_is

# Chunk files of which the header is read, and entries that are looked at, before a directory counts
# as other data: a start must not walk through ten million files.
_CHUNKS_MAX = 64
_ENTRIES_MAX = 100_000
_HEADER_BYTES = 4096  # docs/format.md


class _TooManyError(Exception):
    """More lies there than is looked at."""


def others_data(root: Path) -> str | None:
    """Name of an entry that keeps a directory without a marker from becoming a shelf; None if there
    is none, or if it is one that has lost its marker. Hidden entries are data like any other.

    Raises:
        OSError: it cannot be listed.
    """
    with root_at(root) as descriptor:
        ours: list[Entry] = []
        for entry in entries(descriptor):
            if _is_ours(entry):
                ours.append(entry)
            elif parse_temp_name(entry.name.removeprefix(".")) is None:
                return entry.name
        if not ours or _is_proven(descriptor, ours):
            return None
        return ours[0].name


def has_lost_marker(root: Path, *, in_use: bool = False) -> bool:
    """Whether a directory without a marker holds a shelf; an empty one does not.

    Args:
        in_use: it must also hold a lease or a journal, which only a shelf has that engines or
            evictors use: a copy of some namespaces has none. For commands that delete.

    Raises:
        OSError: it cannot be listed.
    """
    try:
        with root_at(root) as folder:
            is_ours = _is_used(folder, _Look()) if in_use else any(map(_is_ours, entries(folder)))
    except _TooManyError:
        return False
    return is_ours and others_data(root) is None


def _is_ours(entry: Entry) -> bool:
    return what_is("", *entry) in (What.FOLDER, What.ROOT_FILE, What.REMOVED)


def _is_proven(root: int, ours: list[Entry]) -> bool:
    folders = [entry.name for entry in ours if entry.type is Type.FOLDER]
    spaces = list(filter(is_namespace_folder, folders))
    look = _Look()
    try:
        return (
            any(_has_identity(root, name) for name in spaces)
            or _is_cursor(root)
            or _is_used(root, look)
            or _has_chunk(root, look)
            or (
                len(folders) == len(ours)
                and all(_has_no_file(root, name, look) for name in folders)
            )
        )
    except _TooManyError:
        return False


def _is_used(root: int, look: _Look) -> bool:
    return _holds(root, EVICT_FOLDER, look, _is_lease) or _holds(
        root, REMOVED_FOLDER, look, _is_journal
    )


class _Look:
    """Counts what is looked at."""

    def __init__(self) -> None:
        self._left, self._chunks_left = _ENTRIES_MAX, _CHUNKS_MAX

    def entry(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooManyError

    def chunk(self) -> bool:
        """Whether the header of one more may be read."""
        self._chunks_left -= 1
        return self._chunks_left >= 0


def _has_identity(root: int, name: str) -> bool:
    """Whether a sound namespace.json in the folder says its name."""
    with contextlib.suppress(OSError, ValueError), folder_at(root, name) as folder:
        return Identity.from_json(read_json(NAMESPACE_FILE, dir_fd=folder)).folder == name
    return False


def _is_cursor(root: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        value = read_json(SCRUB_CURSOR, dir_fd=root)
        return isinstance(value, dict) and value.keys() == {"kvshelf", "after", "passes"}
    return False


def _holds(root: int, name: str, look: _Look, proves: Callable[[int, str], bool]) -> bool:
    with contextlib.suppress(OSError), folder_at(root, name) as folder:
        for entry in entries(folder):
            look.entry()
            if entry.type is Type.FILE and proves(folder, entry.name):
                return True
    return False


def _is_lease(folder: int, name: str) -> bool:
    if parse_lease_name(name) is None:
        return False
    return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size == 0


def _is_journal(folder: int, name: str) -> bool:
    return parse_removed_name(name) is not None and _head(folder, name, len(REMOVED_MAGIC)) == (
        REMOVED_MAGIC
    )


def _has_chunk(root: int, look: _Look) -> bool:
    """Whether a chunk has a sound header that says where it lies."""
    for found in walk(root, skip=TEMP_FOLDER):
        look.entry()
        if found.what is What.CHUNK:
            if not look.chunk():
                return False
            with contextlib.suppress(OSError):
                if _is_chunk(found.folder, found.path):
                    return True
    return False


def _is_chunk(folder: int, path: str) -> bool:
    # The checksum is the native core's: only here, where it is needed.
    from kvshelf.core import native  # noqa: PLC0415

    name = parse_chunk_path(path)
    if name is None:
        return False
    found = native.read_header(_head(folder, path.rpartition("/")[2], _HEADER_BYTES))
    if found is None:
        return False
    key, namespace, rank = found
    digest = short_digest(name.folder)
    return (key, rank) == (name.key, name.rank) and namespace.startswith(digest)


def _head(folder: int, name: str, size: int) -> bytes:
    """The first bytes of a regular file; nothing of anything else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def _has_no_file(root: int, name: str, look: _Look) -> bool:
    """Whether a folder of ours holds folders of ours alone, and those nothing but such folders."""
    try:
        with folder_at(root, name) as folder:
            for found in walk(folder, name):
                look.entry()
                if found.what is not What.FOLDER or name in ROOT_FOLDERS:
                    return False
    except OSError:
        return False
    return True
