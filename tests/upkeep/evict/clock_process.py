"""A node whose clock may be wrong: stores a chunk, or uses it again, as an engine does.

    python -m tests.upkeep.evict.clock_process ROOT NUMBER [touch | CONTROL NEW]

With "touch" it knows no more than a shelf that was opened. In between it writes NEW into
libfaketime's CONTROL file, which sets its clock.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, make_key
from kvshelf.disk.clock import FileClock
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
        if sys.argv[3:] == ["touch"]:
            shelf.touch([key])
            assert shelf.drain(10)
            sys.stdout.write(f"{time.time()} {shelf.path_of(key)}\n")
            return
        if len(sys.argv) > 3:
            assert clock.read() is not None
            before, began = time.time(), time.monotonic()
            Path(sys.argv[3]).write_text(sys.argv[4])
            while abs(time.time() - before) < 1000:  # it cannot sleep while its clock is set
                assert time.monotonic() < began + 30
        reading = clock.read()  # again, where it was read before
        assert reading is not None
        shelf.set_clock(0, reading.ahead_ns)
        shelf.touch_at([key], [time.time_ns()], always=True)
        assert shelf.drain(10)
        sys.stdout.write(f"{time.time()} {shelf.path_of(key)}\n")


if __name__ == "__main__":
    main()
