"""Loads of many requests at once into GPU memory: what the borders between them cost.

    python benchmarks/gpu/many_requests.py DIR [--rounds 4] [--label NAME]

384 chunks of 33.6 MB (of an 8B model) are loaded as 24 requests of 16, 192 of 2 and 384 of 1, all
submitted at once, from the page cache. Prints one line of JSON: medians in GB/s by chunks of a
request. To compare two versions, run them in turns on one machine, each with its own PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from transfer import GB, Bench, Shape

from kvshelf import Chunk, EngineConfig, FileStatus
from kvshelf.engine import Phase
from kvshelf.shelf import Shelf

CHUNKS = 384
SIZES = (16, 2, 1)


def load(shelf: Shelf, chunks: list[Chunk], size: int, first: int) -> float:
    """Seconds until all are loaded, in jobs of ``size`` chunks from the id ``first`` on."""
    ids = range(first, first + len(chunks) // size)
    start = time.perf_counter()
    for i, job in enumerate(ids):
        shelf.submit_load(job, chunks[i * size : (i + 1) * size])
    assert shelf.wait(list(ids), Phase.FINISHED, 120)
    seconds = time.perf_counter() - start
    for report in shelf.poll():
        assert all(status is FileStatus.OK for status in report.statuses), report
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--label", default="kvshelf")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.directory, Shape(), CHUNKS // 2, 12, options.rounds)
    shelf = bench.shelf("many", EngineConfig(io_threads=bench.threads))
    chunks = bench.chunk_list(np.concatenate([bench.target, bench.source]), CHUNKS)
    if FileStatus.NOT_FOUND in shelf.lookup([chunk.key for chunk in chunks]):
        for half in (chunks[: CHUNKS // 2], chunks[CHUNKS // 2 :]):
            shelf.store(half)
            shelf.drain(120)
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    first = 0
    for _ in range(options.rounds):
        for size in SIZES:
            rates[size].append(bench.total * 2 / load(shelf, chunks, size, first) / GB)
            first += CHUNKS // size
    medians = {size: round(statistics.median(rates[size]), 2) for size in SIZES}
    sys.stdout.write(json.dumps({"label": options.label, "GB/s": medians}) + "\n")
    return 0 if shelf.close() else 1


if __name__ == "__main__":
    sys.exit(main())
