"""How long a load takes while eviction runs at full speed on the same shelf, and without.

    python benchmarks/bench_evict_load.py

One engine loads chunks of 16 MB from the page cache, one after the other; beside it an evictor in a
process of its own removes small files of the same shelf as fast as it can, for a while, then
rests, in turn. Medians and 99th percentiles of the loads of each kind.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench_engine import RESULTS, file_system, machine
from bench_evict import SIZE, Worker, make_files, make_tree
from kvshelf import Chunk, EngineConfig, Identity, Shelf, make_key

CHUNKS, BLOCK_BYTES = 16, 1 << 20
KEYS = [make_key(bytes([i + 1]) * 32, 0) for i in range(CHUNKS)]


def load_for(shelf: Shelf, until: threading.Event) -> list[float]:
    took = []
    number = 0
    while not until.is_set():
        number += 1
        begin = time.perf_counter()
        shelf.load([Chunk(KEYS[number % CHUNKS], range(16))])
        took.append(time.perf_counter() - begin)
    return took


def resting(shelf: Shelf, seconds: float) -> list[float]:
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.start()
    return load_for(shelf, over)


def evicting(shelf: Shelf, worker: Worker, left: int) -> tuple[list[float], dict[str, Any]]:
    over, answers = threading.Event(), []

    def evict() -> None:
        answers.append(worker.do(bytes=left * SIZE + CHUNKS * (16 * BLOCK_BYTES + 4096)))
        over.set()

    thread = threading.Thread(target=evict)
    thread.start()
    took = load_for(shelf, over)
    thread.join()
    return took, answers[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="default: a temp directory")
    parser.add_argument("--files", type=int, default=240_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        root = Path(name) / "shelf"
        make_tree(root, arguments.files, make_files, time.time())
        memory = np.random.default_rng(1).integers(0, 256, (16, BLOCK_BYTES), dtype=np.uint8)
        config = EngineConfig(io_threads=2, load_only_threads=0, lookup_threads=1)
        with Shelf.of_arrays(root, Identity({"model": "bench"}), memory, config=config) as shelf:
            shelf.store([Chunk(key, range(16)) for key in KEYS])
            resting(shelf, 1.0)
            worker = Worker(root)
            worker.do()
            quiet: list[float] = []
            busy: list[float] = []
            removed, seconds = 0, 0.0
            step = arguments.files // arguments.rounds
            for number in range(arguments.rounds):
                took, answer = evicting(shelf, worker, arguments.files - (number + 1) * step)
                busy += took
                removed, seconds = removed + answer["removed"], seconds + answer["seconds"]
                quiet += resting(shelf, answer["seconds"])
            worker.end()
        kind = file_system(root)
    row = {
        "command": "python benchmarks/bench_evict_load.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "file_system": kind,
        "removed_per_second": round(removed / seconds),
    }
    for label, values in (("alone", quiet), ("while_evicting", busy)):
        values.sort()
        row[label] = {
            "loads": len(values),
            "p50_ms": round(1e3 * values[len(values) // 2], 2),
            "p99_ms": round(1e3 * values[int(0.99 * (len(values) - 1))], 2),
        }
    row["p99_ratio"] = round(row["while_evicting"]["p99_ms"] / row["alone"]["p99_ms"], 3)
    print(json.dumps(row, indent=1))
    (RESULTS / "evict-load.json").write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
