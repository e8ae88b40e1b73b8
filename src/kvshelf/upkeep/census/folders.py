"""The chunk folders of a shelf, and what lies in one. Follows no link; writes nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.disk.junk import is_junk
from kvshelf.disk.layout import (
    CHUNK_SUFFIX,
    TEMP_FOLDER,
    is_hash_folder,
    is_namespace_folder,
    parse_rank_folder,
)
from kvshelf.disk.usetime import last_use, stored_ns

# What a folder says that was removed meanwhile, or was none.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass(slots=True)
class Unread:
    """Folders that are there and could not be listed, and files that would not say their size.

    Attributes:
        example: "path: reason" of the first of them.
    """

    count: int = 0
    example: str = ""

    def add(self, path: str | Path, error: OSError) -> None:
        if error.errno in _GONE:
            return
        self.count += 1
        self.example = self.example or f"{path}: {error.strerror or error}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk file's size in bytes, and when it was stored and used, in seconds since 1970.

    ``stored`` is None for a chunk that was used again: its file's times no longer tell.
    """

    size: int
    stored: float | None
    used: float


@dataclass(slots=True)
class RankFolder:
    """A rank of a namespace.

    Attributes:
        hash_folders: names of its folders of chunk files.
    """

    namespace: str
    rank: int
    path: Path
    hash_folders: set[str] = field(default_factory=set)


def rank_folders(root: Path, unread: Unread) -> list[RankFolder]:
    """Every rank of every namespace, in order. ``unread`` gets what could not be listed.

    Raises:
        OSError: the root cannot be listed.
    """
    found = []
    for namespace in sorted(_subfolders(root)):
        if not is_namespace_folder(namespace):
            continue
        for name in _folders_in(root / namespace, unread):
            rank = parse_rank_folder(name)
            if rank is not None:
                path = root / namespace / name
                digits = {each for each in _folders_in(path, unread) if is_hash_folder(each)}
                found.append(RankFolder(namespace, rank, path, digits))
    return sorted(found, key=lambda each: (each.namespace, each.rank))


def chunks_in(folder: Path, unread: Unread) -> dict[str, Chunk]:
    """Chunk files of a folder by name; nothing if it cannot be listed."""
    found = {}
    for entry in _scan(folder, unread):
        if not _may_be_chunk(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError as error:
            unread.add(entry.path, error)
            continue
        stored = stored_ns(stat)
        found[entry.name] = Chunk(
            size=stat.st_size,
            stored=None if stored is None else 1e-9 * stored,
            used=1e-9 * last_use(stat).ns,
        )
    return found


def _may_be_chunk(name: str) -> bool:
    return name.endswith(CHUNK_SUFFIX) and not is_junk(name)


def temp_bytes(root: Path, namespace: str, unread: Unread) -> int:
    """Bytes of files that are being written, or that a killed writer left."""
    size = 0
    for entry in _scan(root / namespace / TEMP_FOLDER, unread):
        if is_junk(entry.name):
            continue
        try:
            size += entry.stat(follow_symlinks=False).st_size
        except OSError as error:
            unread.add(entry.path, error)
    return size


def _folders_in(path: Path, unread: Unread) -> list[str]:
    """Folders in a folder; none if it cannot be listed."""
    try:
        return _subfolders(path)
    except OSError as error:
        unread.add(path, error)
        return []


def _subfolders(path: Path) -> list[str]:
    with os.scandir(path) as scan:
        return [entry.name for entry in scan if entry.is_dir(follow_symlinks=False)]


def _scan(path: Path, unread: Unread) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as scan:
            yield from scan
    except OSError as error:
        unread.add(path, error)
