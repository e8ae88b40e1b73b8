"""A shelf over several roots, its block memory, and keys of each root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvshelf import Identity, Shelf, make_key
from kvshelf.engine import EngineConfig, FileStatus, JobResult, Phase
from kvshelf.testing import Blocks

CONFIG = EngineConfig(io_threads=4, load_only_threads=2, lookup_threads=4)
IDENTITY = Identity({"model": "demo"})


def key_at(index: int) -> bytes:
    return make_key(index.to_bytes(32, "big"), 0)


class Site:
    def __init__(self, folder: Path, names: str = "ab", **more: Any) -> None:
        self.roots = [folder / name for name in names]
        self.memory = more.pop("memory", None) or [Blocks((4096,), 64)]
        groups = [blocks.describe() for blocks in self.memory]
        self.shelf = Shelf(self.roots, IDENTITY, groups=groups, config=CONFIG, **more)
        self.next_job = 1

    def keys(self, count: int) -> list[list[bytes]]:
        """``count`` keys of each root."""
        found = [list[bytes]() for _ in self.roots]
        index = 0
        while min(map(len, found)) < count:
            key = key_at(index)
            found[self.shelf.root_of(key)].append(key)
            index += 1
        return [keys[:count] for keys in found]

    def finish(self, kind: str, work: Sequence[Any]) -> list[JobResult]:
        job, self.next_job = self.next_job, self.next_job + 1
        getattr(self.shelf, f"submit_{kind}")(job, work)
        assert self.shelf.wait([job], Phase.FINISHED, 30)
        return [report for report in self.shelf.poll() if report.job_id == job]

    def statuses(self, kind: str, work: Sequence[Any]) -> list[FileStatus]:
        return list(self.finish(kind, work)[-1].statuses)
