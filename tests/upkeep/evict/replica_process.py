"""A replica without an engine: stores chunks of its own and has the duty to evict.

    python replica_process.py ROOT NUMBER LIMIT_BYTES SECONDS

Says "ready", waits for a line, stores for so long, then says "w TIME BYTES" for each store and
"e BEGIN END BYTES" for each step in which it evicted. Times are CLOCK_MONOTONIC's, one for all.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, make_key
from kvshelf.shelf import Shelf
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import Report

BLOCK_BYTES = 124 << 10  # with a header, and as files are padded: 128 KiB
STORES_A_SECOND = 10.0
IDENTITY = Identity({"model": "tiny"})


class Watched(Evictor):
    steps: list[tuple[float, float, int]]

    def step(self, seconds_max: float = 1.0) -> Report:
        begin = time.monotonic()
        report = super().step(seconds_max)
        if report.removed:
            self.steps.append((begin, time.monotonic(), report.removed.bytes))
        return report


def main() -> None:
    root, number, limit_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    seconds = float(sys.argv[4])
    steps: list[tuple[float, float, int]] = []

    def watched(*args: Any, **kwargs: Any) -> Watched:
        made = Watched(*args, **kwargs)
        made.steps = steps
        return made

    memory = np.zeros((1, BLOCK_BYTES), dtype=np.uint8)
    config = EngineConfig(io_threads=1, load_only_threads=0, lookup_threads=1)
    shelf = Shelf.of_arrays(root, IDENTITY, memory, config=config)
    duty = EvictionDuty(
        root,
        IDENTITY.folder,
        limits=Limits(shelf_bytes=limit_bytes, low_percent=80),
        lease_seconds=5.0,
        evictor=watched,
    )
    duty.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    stores: list[tuple[float, int]] = []
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        key = make_key(number.to_bytes(16, "big") + count.to_bytes(16, "big"), 0)
        assert shelf.store([Chunk(key, [0])]) == [FileStatus.OK]
        stores.append((time.monotonic(), BLOCK_BYTES + 4096))
        count += 1
        time.sleep(1 / STORES_A_SECOND)
    sys.stdin.readline()  # the others are done too
    assert duty.close(20) and shelf.close(20)
    for at, size in stores:
        sys.stdout.write(f"w {at} {size}\n")
    for begin, finish, size in steps:
        sys.stdout.write(f"e {begin} {finish} {size}\n")


if __name__ == "__main__":
    main()
