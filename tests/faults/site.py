"""A shelf in a directory of its own with a worker and a manager on it, as in an engine, whose
system calls meet the faults of FaultyCalls. For processes with its library preloaded."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import (
    GPULoadStoreSpec,
    LookupResult,
    ReqContext,
    ScheduleEndContext,
)

from kvshelf import EngineConfig, Identity, make_key
from kvshelf.config import Settings
from kvshelf.disk.keys import ChunkKey
from kvshelf.engine import EngineStats, JobResult, Phase
from kvshelf.shelf import Shelf
from kvshelf.testing import Blocks
from kvshelf.vllm.scheduler.chunk_table import ChunkTable
from kvshelf.vllm.scheduler.manager import KvshelfManager
from kvshelf.vllm.specs import ChunkKeysSpec
from kvshelf.vllm.worker.worker import KvshelfWorker
from tests.harness.codec import bad_pieces, decode
from tests.harness.faulty_calls import FaultyCalls

PER_CHUNK = 2
PAGE_BYTES = (4096, 1000, 8192)
PACKED_PIECE_BYTES = 32_768
IDENTITY, STALE = Identity({"model": "m"}), Identity({"model": "m", "weights": "of yesterday"})
CONTEXT = ReqContext(req_id="r")
STEP_END = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())
PATIENCE_SECONDS = 20.0
CALM = EngineConfig(
    io_threads=3,
    load_only_threads=1,
    lookup_threads=2,
    piece_bytes=8192,
    step_bytes=8192,
    write_buffer_bytes=1 << 20,
    touch_interval_seconds=60,
)


def key(index: int) -> ChunkKey:
    """Each has a folder of its own."""
    return make_key((index << 4).to_bytes(2, "big") + index.to_bytes(30, "big"), 0)


def eventually(reached: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def engine_threads() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:  # it has ended
            continue
        if name.startswith("kvs-"):
            names.append(name)
    return names


def lookup_threads_rest() -> bool:
    """Whether all of them sleep (proc_pid_stat(5), field 3): none runs, or waits to."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended just now
            name, _, rest = (task / "stat").read_text().partition(") ")
            if "(kvs-meta" in name and not rest.startswith("S"):
                return False
    return True


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Watched(Shelf):
    """Keeps what it reported."""

    reports: list[JobResult]

    def poll(self) -> list[JobResult]:
        news = super().poll()
        self.reports = [*getattr(self, "reports", []), *news]
        return news


class Lines(logging.Handler):
    """Log lines of kvshelf."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Site:
    """One rank's worker and the scheduler's manager, each with its shelf. One thread.

    Args:
        folder: empty.
        calls: attached to this process.
        packs: whether chunks are of bf16 numbers, each of one piece, which is packed.
    """

    def __init__(
        self,
        folder: Path,
        calls: FaultyCalls,
        config: EngineConfig = CALM,
        *,
        packs: bool = False,
    ) -> None:
        if packs:
            config = replace(config, compress=True, piece_bytes=PACKED_PIECE_BYTES)
        self.folder, self.root = folder, folder / "shelf"
        self.calls, self.config = calls, config
        calls.set()
        calls.root(self.root)
        self.blocks = Blocks(PAGE_BYTES, 48)
        self.packs = packs
        self.fill_blocks()
        groups = [self.blocks.describe()]
        self.shelf = Watched(self.root, IDENTITY, groups=groups, config=config)
        self.worker = KvshelfWorker(
            self.shelf,
            group_ids=[0],
            blocks_per_chunk=PER_CHUNK,
            load_timeout_seconds=config.load_timeout_seconds,
            close_timeout_seconds=5,
        )
        self.lookups = Watched(self.root, IDENTITY, config=config)
        self.manager = KvshelfManager(
            self.lookups,
            ChunkTable(
                hit_ttl_seconds=30, miss_ttl_seconds=30, failed_ttl_seconds=60, keys_max=1000
            ),
            Settings(lookup_wait_seconds=config.lookup_timeout_seconds + 5),
            chunk_bytes=PER_CHUNK * sum(PAGE_BYTES),
            chunk_tokens=16,
            emit_events=False,
        )
        self.log = Lines()
        logging.getLogger("vllm.kvshelf").addHandler(self.log)
        self._jobs = 0

    def fill_blocks(self) -> None:
        """With what they hold at the beginning, the same every time."""
        fill = self.blocks.fill_numbers if self.packs else self.blocks.randomize
        fill(self.blocks.seed)

    def path(self, index: int) -> Path:
        return self.root / self.shelf.path_of(key(index))

    def temp_files(self) -> list[str]:
        return [path.name for path in (self.root / IDENTITY.folder / "tmp").glob("*")]

    def transfer(self, kind: str, indices: Sequence[int], ids: Sequence[int]) -> JobResult:
        """A job as vLLM gives it; its last report."""
        self._jobs += 1
        blocks = GPULoadStoreSpec(list(ids), group_sizes=[len(ids)], block_indices=[0])
        keys = ChunkKeysSpec([key(index) for index in indices])
        if kind == "store":
            self.worker.submit_store(self._jobs, blocks, keys)
        else:
            self.worker.submit_load(self._jobs, keys, blocks)
        return self._finished(self.shelf, self._jobs, self.worker.get_finished)

    def lookup(self, indices: Sequence[int]) -> JobResult:
        """Ask as vLLM does, once a step."""
        self.lookups.reports = []
        keys = [key(index) for index in indices]

        def step() -> bool:
            answers = [self.manager.lookup(each, CONTEXT) for each in keys]
            self.manager.on_schedule_end(STEP_END)
            return LookupResult.RETRY not in answers

        eventually(step, "the lookup has no answer")
        return self.lookups.reports[-1]

    def probe(self, indices: Sequence[int]) -> JobResult:
        self._jobs += 1
        self.shelf.submit_probe(self._jobs, [key(index) for index in indices], 1 << 20)
        return self._finished(self.shelf, self._jobs, self.shelf.poll)

    @staticmethod
    def _finished(shelf: Watched, job: int, fetch: Callable[[], object]) -> JobResult:
        def found() -> list[JobResult]:
            fetch()
            return [
                report
                for report in getattr(shelf, "reports", [])
                if report.job_id == job and report.phase is Phase.FINISHED
            ]

        eventually(found, f"job {job} does not end")
        return found()[0]

    def stats(self) -> EngineStats:
        return self.shelf.stats()

    def idle(self) -> None:
        """Until nothing of a job is under way any more, hung or not."""
        for shelf in (self.shelf, self.lookups):
            assert shelf.drain(PATIENCE_SECONDS), "the engine does not come to rest"
            eventually(lambda s=shelf: s.stats().hung_threads == 0, "a thread does not come back")

    def damaged_files(self) -> list[str]:
        """Names that hold bytes which a checksum gives away."""
        found = []
        for path in self.root.glob("*/r*/*/*.kv"):
            data = path.read_bytes()
            try:
                header = decode(data)
            except ValueError:
                found.append(path.name)
                continue
            if len(data) < header.file_bytes or bad_pieces(header, data[4096:]):
                found.append(path.name)
        return found

    def close(self) -> None:
        self.calls.set()
        logging.getLogger("vllm.kvshelf").removeHandler(self.log)
        assert self.shelf.close(PATIENCE_SECONDS), "the engine does not close"
        assert self.lookups.close(PATIENCE_SECONDS), "the manager's engine does not close"
        assert self.blocks.guards_are_whole(), "bytes between pages have changed"


def flip_on_disk(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[6000] ^= 1
    path.write_bytes(bytes(data))


def age(paths: Sequence[Path], seconds: float = 3600.0) -> None:
    """So that a touch finds something to renew."""
    for path in paths:
        old = path.stat().st_mtime - seconds
        os.utime(path, (old, old))


def random_blocks(blocks: Blocks, ids: Sequence[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for layer, size in zip(blocks.layers, blocks.page_bytes, strict=True):
        layer[list(ids), :size] = rng.integers(0, 256, (len(ids), size), dtype=np.uint8)
