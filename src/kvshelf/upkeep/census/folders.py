"""The chunk folders of a shelf, and what lies in one. Follows no link; writes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.disk.layout import TEMP_FOLDER, parse_rank_folder
from kvshelf.disk.tree import GONE, folder_at, root_at
from kvshelf.disk.usetime import last_use, stored_ns
from kvshelf.disk.walk import What, walk
from kvshelf.upkeep.census.estimate import age_bucket


@dataclass(slots=True)
class Unread:
    """Folders that are there and could not be listed, and files that would not say their size.

    Attributes:
        example: "path: reason" of the first of them.
    """

    count: int = 0
    example: str = ""

    def add(self, path: str | Path, error: OSError) -> None:
        if error.errno in GONE:
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
    found: dict[tuple[str, int], RankFolder] = {}
    with root_at(root) as descriptor:
        for each in walk(descriptor, skip=TEMP_FOLDER, depth=2):
            if each.error is not None and not each.path:
                raise each.error
            if each.error is not None:
                unread.add(root / each.path, each.error)
            if each.what is not What.FOLDER:
                continue
            namespace, _, inner = each.path.partition("/")
            name, _, digits = inner.partition("/")
            number = parse_rank_folder(name)
            if number is None:
                continue
            place = namespace, number
            if place not in found:
                found[place] = RankFolder(namespace, number, root / namespace / name)
            if digits:
                found[place].hash_folders.add(digits)
    return [found[place] for place in sorted(found)]


def chunks_in(rank: RankFolder, digits: str, unread: Unread) -> dict[str, Chunk]:
    """Chunk files of a hash folder by name; nothing if it cannot be listed."""
    found = {}
    path = f"{rank.namespace}/r{rank.rank}/{digits}"
    for name, stat in _files(rank.path / digits, path, What.CHUNK, unread):
        stored = stored_ns(stat)
        found[name] = Chunk(
            size=stat.st_size,
            stored=None if stored is None else 1e-9 * stored,
            used=1e-9 * last_use(stat).ns,
        )
    return found


def age_buckets(chunks: Collection[Chunk], now: float) -> tuple[Counter[int], Counter[int]]:
    """Chunk files by age bucket: since they were stored, if that is known, and since their use."""
    known = [chunk.stored for chunk in chunks if chunk.stored is not None]
    stored = Counter(age_bucket(now - each) for each in known)
    return stored, Counter(age_bucket(now - chunk.used) for chunk in chunks)


def temp_bytes(root: Path, namespace: str, unread: Unread) -> int:
    """Bytes of files that are being written, or that a killed writer left."""
    path = f"{namespace}/{TEMP_FOLDER}"
    files = _files(root / path, path, None, unread)
    return sum(stat.st_size for _, stat in files)


def _files(
    folder: Path, path: str, wanted: What | None, unread: Unread
) -> Iterator[tuple[str, os.stat_result]]:
    """Entries of a folder of ours that holds no other, of one kind or of any.

    Args:
        path: of the folder, relative to the root.
    """
    try:
        with folder_at(None, folder) as descriptor:
            for each in walk(descriptor, path, depth=0):
                if each.error is not None:
                    unread.add(folder, each.error)
                elif wanted in (None, each.what):
                    try:
                        name = each.name
                        stat = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    except OSError as error:
                        unread.add(folder / name, error)
                    else:
                        yield name, stat
    except OSError as error:
        unread.add(folder, error)
