"""A node whose clock may be wrong: stores a chunk, or uses it again, as an engine does.

    python -m tests.evict.clock_process ROOT NUMBER [SECONDS CONTROL NEW]

With SECONDS it waits so long in between and then writes NEW into libfaketime's CONTROL file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, make_key
from kvshelf.clock import FileClock
from kvshelf.shelf import Shelf

IDENTITY = Identity({"model": "tiny"})
BLOCK_BYTES = 4096


def main() -> None:
    root, number = sys.argv[1], int(sys.argv[2])
    memory = np.zeros((1, BLOCK_BYTES), dtype=np.uint8)
    config = EngineConfig(io_threads=1, load_only_threads=0, lookup_threads=1)
    clock = FileClock(root)
    with Shelf.of_arrays(root, IDENTITY, memory, config=config) as shelf:
        key = make_key(number.to_bytes(32, "big"), 0)
        assert shelf.store([Chunk(key, [0])]) == [FileStatus.OK]
        if len(sys.argv) > 3:
            Path(sys.argv[3]).write_text(sys.argv[4])
            before = time.time()
            while abs(time.time() - before) < 1000:
                time.sleep(0.01)
        reading = clock.read()
        assert reading is not None
        shelf.set_clock(0, reading.ahead_ns)
        shelf.touch_at([key], [time.time_ns()], always=True)
        assert shelf.drain(10)
        sys.stdout.write(f"{time.time()} {shelf.path_of(key)}\n")


if __name__ == "__main__":
    main()
