"""Ten thousand faults leave nothing behind: no thread, no file descriptor, no memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, make_key
from kvshelf.engine import Phase
from kvshelf.shelf import Shelf

from .mount import FaultyMount, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

CHUNKS = 40
BLOCK_BYTES = 4096
# Every kind of fault that ends at once, and one that needs a deadline.
FAULTS: tuple[dict[str, object], ...] = (
    {"match": "*.kv", "read": "EIO"},
    {"match": "*.kv", "open": "ESTALE"},
    {"match": "*.kv", "stat": "EIO"},
    {"write": "ENOSPC"},
    {"create": "EACCES"},
    {"rename": "EIO"},
    {"match": "*.kv", "stall_read_s": 60},
)
CONFIG = EngineConfig(
    io_threads=4, lookup_threads=4, load_stall_seconds=0.1, write_buffer_bytes=1 << 20,
    piece_bytes=1 << 16, store_queue_seconds=1.0, store_timeout_seconds=1.0,
)  # fmt: skip


def resources() -> tuple[int, int, int]:
    """Threads, descriptors and resident bytes of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return int(fields["Threads"]), descriptors, int(fields["VmRSS"].split()[0]) << 10


class Site:
    def __init__(self, folder: Path) -> None:
        self.mount = FaultyMount(folder)
        self.blocks = np.random.default_rng(3).integers(
            0, 255, (2 * CHUNKS, BLOCK_BYTES), dtype=np.uint8
        )
        root = self.mount.path / "shelf"
        root.mkdir()
        self.shelf = Shelf.of_arrays(root, Identity({"model": "m"}), self.blocks, config=CONFIG)
        self.job = 0
        self.faults = 0

    def chunks(self, first: int) -> list[Chunk]:
        return [
            Chunk(make_key((first + i).to_bytes(32, "big"), 0), [2 * i, 2 * i + 1])
            for i in range(CHUNKS)
        ]

    def run(self, kind: str, first: int) -> None:
        self.job += 1
        chunks = self.chunks(first)
        if kind == "lookup":
            self.shelf.submit_lookup(self.job, [chunk.key for chunk in chunks])
        else:
            getattr(self.shelf, f"submit_{kind}")(self.job, chunks)
        assert self.shelf.wait([self.job], Phase.FINISHED, 30)
        for report in self.shelf.poll():
            if report.phase is Phase.FINISHED:
                self.faults += sum(status is not FileStatus.OK for status in report.statuses)

    def round(self, number: int) -> None:
        """All faults, one after the other: stored chunks are loaded, new ones stored."""
        for faults in FAULTS:
            self.mount.set(**faults)
            self.run("lookup", 0)
            self.run("load", 0)
            self.run("store", 1000 + number)
        self.mount.set()
        deadline = time.monotonic() + 10
        while self.shelf.stats().hung_threads and time.monotonic() < deadline:
            time.sleep(0.01)
        self.run("store", 0)  # what was removed as damaged, if anything, is there again


@pytest.fixture
def site(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Site(tmp_path)
    yield made
    made.shelf.close()
    made.mount.close()


def test_ten_thousand_faults_leave_nothing_behind(site: Site) -> None:
    site.run("store", 0)
    number = 0
    while site.faults < 1000:  # pools fill, threads are made
        site.round(number)
        number += 1
    before = resources()
    while site.faults < 11_000:
        site.round(number)
        number += 1
    threads, descriptors, resident = resources()
    assert threads <= before[0] + 1 and descriptors <= before[1]
    assert resident - before[2] < 8 << 20, f"grew from {before[2]:,} to {resident:,} bytes"
    assert site.shelf.stats().hung_threads == 0
    # And all works as before.
    site.blocks[:] = 0
    site.run("load", 0)
    assert site.blocks.any()
