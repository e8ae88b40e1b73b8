"""The chunk folders of a shelf, and what lies in one. Follows no link; writes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.layout import (
    CHUNK_SUFFIX,
    TEMP_FOLDER,
    is_hash_folder,
    is_namespace_folder,
    parse_rank_folder,
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk file's size in bytes, and when it was stored and used, in seconds since 1970."""

    size: int
    stored: float
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


def rank_folders(root: Path) -> list[RankFolder]:
    """Every rank of every namespace, in order.

    Raises:
        OSError: the root cannot be listed.
    """
    found = []
    for namespace in sorted(_subfolders(root)):
        if not is_namespace_folder(namespace):
            continue
        for name in list_folder(root / namespace):
            rank = parse_rank_folder(name)
            if rank is not None:
                path = root / namespace / name
                digits = {each for each in list_folder(path) if is_hash_folder(each)}
                found.append(RankFolder(namespace, rank, path, digits))
    return sorted(found, key=lambda each: (each.namespace, each.rank))


def chunks_in(folder: Path) -> dict[str, Chunk]:
    """Chunk files of a folder by name; nothing if it cannot be listed."""
    found = {}
    for entry in _scan(folder):
        if not entry.name.endswith(CHUNK_SUFFIX) or not entry.is_file(follow_symlinks=False):
            continue
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # evicted meanwhile
        found[entry.name] = Chunk(stat.st_size, stat.st_mtime, max(stat.st_atime, stat.st_mtime))
    return found


def temp_bytes(root: Path, namespace: str) -> int:
    """Bytes of files that are being written, or that a killed writer left."""
    size = 0
    for entry in _scan(root / namespace / TEMP_FOLDER):
        try:
            size += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return size


def list_folder(path: Path) -> list[str]:
    """Folders in a folder; none if it cannot be listed."""
    try:
        return _subfolders(path)
    except OSError:
        return []


def _subfolders(path: Path) -> list[str]:
    with os.scandir(path) as scan:
        return [entry.name for entry in scan if entry.is_dir(follow_symlinks=False)]


def _scan(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as scan:
            yield from scan
    except OSError:
        return
