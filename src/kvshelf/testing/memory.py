"""Block memory with guard bytes, and batches over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvshelf.disk.layout import chunk_path_in
from kvshelf.engine import (
    Batch,
    BatchBuilder,
    Engine,
    EngineConfig,
    FileStatus,
    GroupMemory,
    JobResult,
    Pages,
    Phase,
)

NAMESPACE = bytes(range(32))
GUARD = 0xA5
GUARD_BYTES = 64


@dataclass
class Blocks:
    """Block memory of one group, with guard bytes around all that an engine may write.

    Attributes:
        page_bytes: size of a page, one a layer.
        gap_bytes: guard bytes behind each page; 0 makes consecutive blocks one run of bytes.
        layers: uint8[num_blocks, page_bytes + gap_bytes], one a layer.
    """

    page_bytes: Sequence[int]
    num_blocks: int
    seed: int = 1
    gap_bytes: int = GUARD_BYTES
    layers: list[NDArray[np.uint8]] = field(init=False)
    _buffers: list[NDArray[np.uint8]] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [self.num_blocks * (size + self.gap_bytes) for size in self.page_bytes]
        self._buffers = [np.full(size + 2 * GUARD_BYTES, GUARD, np.uint8) for size in sizes]
        self.layers = [
            buffer[GUARD_BYTES:-GUARD_BYTES].reshape(self.num_blocks, -1)
            for buffer in self._buffers
        ]
        self.randomize(self.seed)

    def randomize(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for layer, size in zip(self.layers, self.page_bytes, strict=True):
            layer[:, :size] = rng.integers(0, 256, (self.num_blocks, size), dtype=np.uint8)

    def fill_numbers(self, seed: int) -> None:
        """Numbers of bf16 as a KV cache has them, in every page of an even size."""
        rng = np.random.default_rng(seed)
        for layer, size in zip(self.layers, self.page_bytes, strict=True):
            numbers = rng.standard_normal((self.num_blocks, size // 2), dtype=np.float32)
            layer[:, :size] = (numbers.view("<u4") >> 16).astype("<u2").view(np.uint8)

    def clear(self, ids: Sequence[int] | None = None) -> None:
        """Zero these blocks, or all: what is right afterwards was loaded."""
        rows = range(self.num_blocks) if ids is None else ids
        for layer, size in zip(self.layers, self.page_bytes, strict=True):
            layer[list(rows), :size] = 0

    def describe(self) -> GroupMemory:
        pages = tuple(
            Pages(layer.ctypes.data, layer.strides[0], size)
            for layer, size in zip(self.layers, self.page_bytes, strict=True)
        )
        return GroupMemory(pages, self.num_blocks)

    def block(self, index: int) -> bytes:
        """A block's bytes in the order of the file."""
        return b"".join(
            layer[index, :size].tobytes()
            for layer, size in zip(self.layers, self.page_bytes, strict=True)
        )

    def blocks(self, ids: Sequence[int]) -> list[bytes]:
        return [self.block(index) for index in ids]

    def guards_are_whole(self) -> bool:
        """Whether every byte that is no page's is as it was."""
        ends = [part for b in self._buffers for part in (b[:GUARD_BYTES], b[-GUARD_BYTES:])]
        pairs = zip(self.layers, self.page_bytes, strict=True)
        gaps = [layer[:, size:] for layer, size in pairs]
        return all(bool((part == GUARD).all()) for part in (*ends, *gaps))


@dataclass
class Setup:
    """An engine under test with its block memory, and short ways to use it."""

    make: Callable[..., Engine]
    root: Path
    memory: list[Blocks]
    config: EngineConfig
    engine: Engine = field(init=False)
    next_job: int = 1

    def __post_init__(self) -> None:
        self.engine = self.open()

    def open(self, **changes: Any) -> Engine:
        """Another engine on the same files; ``namespace``, ``rank``, ``config`` or ``groups``."""
        groups = changes.pop("groups", [blocks.describe() for blocks in self.memory])
        config = changes.pop("config", self.config)
        arguments = {"namespace": NAMESPACE, "rank": 0, **changes}
        return self.make(str(self.root), groups, config, **arguments)

    @staticmethod
    def path(index: int, group: int = 0) -> str:
        return f"ns/r0/abc/{index:064x}-g{group}.kv"

    @staticmethod
    def key(index: int, group: int = 0) -> bytes:
        return index.to_bytes(32, "big") + group.to_bytes(4, "big")

    def batch(
        self, *rows: tuple[int, Sequence[int], int] | tuple[int, Sequence[int], int, int]
    ) -> Batch:
        """Rows of (chunk index, block ids, first block[, group])."""
        builder = BatchBuilder()
        for index, ids, first, *rest in rows:
            group = rest[0] if rest else 0
            array = np.asarray(ids, dtype=np.int32)
            builder.add(self.path(index, group), self.key(index, group), group, first, array)
        return builder.build()

    def finish(self, kind: str, work: Any, engine: Engine | None = None) -> list[JobResult]:
        """Submit, wait until FINISHED, and return the job's reports."""
        engine = engine or self.engine
        job, self.next_job = self.next_job, self.next_job + 1
        getattr(engine, f"submit_{kind}")(job, work)
        assert engine.wait([job], Phase.FINISHED, 30)
        return [report for report in engine.poll() if report.job_id == job]

    def store_keys(self, keys: Sequence[bytes]) -> None:
        """Store a chunk under the layout's name of each key, in the folder ns/r0."""
        batch = self.batch(*((i, [i % 8], 0) for i in range(len(keys))))
        paths = [chunk_path_in("ns/r0", key) for key in keys]
        batch = dataclasses.replace(batch, paths=paths, keys=keys)
        assert set(self.statuses("store", batch)) == {FileStatus.OK}

    def report(self, kind: str, *arguments: Any) -> JobResult:
        """Submit, wait until FINISHED, and return the job's only report."""
        job, self.next_job = self.next_job, self.next_job + 1
        getattr(self.engine, f"submit_{kind}")(job, *arguments)
        assert self.engine.wait([job], Phase.FINISHED, 20)
        (report,) = self.engine.poll()
        return report

    def statuses(self, kind: str, work: Any, engine: Engine | None = None) -> list[FileStatus]:
        return list(self.finish(kind, work, engine)[-1].statuses)
