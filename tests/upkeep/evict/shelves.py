"""Shelves of real files, small and with known times of use."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from kvshelf.disk.keys import ChunkKey, make_key
from kvshelf.disk.layout import chunk_path
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.report import Report, State

CHUNK_BYTES = 8192


@dataclass
class Chunk:
    path: Path
    key: ChunkKey
    used_at: float


class ShelfMaker:
    """A shelf with one or more namespaces, and what was put on it."""

    def __init__(self, root: Path, *models: str) -> None:
        self.root = open_root(root)
        self.now = time.time()
        self.folders = [
            open_namespace(root, Identity({"model": model})).name for model in models or ("tiny",)
        ]
        self.chunks: list[Chunk] = []

    def add(
        self,
        age_seconds: float,
        *,
        name_space: int = 0,
        rank: int = 0,
        size: int = CHUNK_BYTES,
        reused: bool = False,
        real: bool = False,
    ) -> Chunk:
        """A chunk file last used so long ago; sparse unless its blocks must be real."""
        digest = hashlib.sha256(str(len(self.chunks)).encode()).digest()
        key = make_key(digest, 0)
        path = self.root / chunk_path(self.folders[name_space], rank, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            if real:
                file.write(b"x" * size)
            file.truncate(size)
        used = self.now - age_seconds
        os.utime(path, (used, used - 100 if reused else used))
        chunk = Chunk(path, key, used)
        self.chunks.append(chunk)
        return chunk

    def oldest(self, count: int) -> set[Path]:
        """The reference: a list of all files, sorted."""
        return {chunk.path for chunk in sorted(self.chunks, key=lambda c: c.used_at)[:count]}

    def gone(self) -> set[Path]:
        return {chunk.path for chunk in self.chunks if not chunk.path.exists()}


def settle(evictor: Evictor, seconds: float = 60.0) -> Report:
    """Step until there is nothing to do; the last report, with what all removed together."""
    deadline = time.monotonic() + seconds
    removed, spared = None, 0
    while True:
        report = evictor.step()
        removed = report.removed if removed is None else removed + report.removed
        spared += report.spared
        if report.state not in (State.SCANNING, State.EVICTING):
            object.__setattr__(report, "removed", removed)
            object.__setattr__(report, "spared", spared)
            return report
        assert time.monotonic() < deadline, report
