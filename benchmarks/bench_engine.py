"""How fast the engine stores and loads chunk files, against plain threads that write() and read().

    python benchmarks/bench_engine.py [--directory DIR] [--files 48] [--rounds 7]

Chunks are shaped like 16 blocks of a model with 32 layers and 64 KiB pages: 32 MiB each. Block
memory is host memory; files are in the page cache, which stands for storage that is faster than
memory copies. Both sides move the same bytes with the same number of threads, alternating in
every round; the ratio is the median of the rounds' ratios. The plain side neither checks nor
publishes anything: it opens, writes or reads a whole file into contiguous memory, and closes.

Prints a table and writes benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil

from kvshelf.engine import (
    Batch,
    BatchBuilder,
    EngineConfig,
    FileStatus,
    GroupMemory,
    Pages,
    Phase,
)
from kvshelf.engine.native import NativeEngine

LAYERS = 32
PAGE_BYTES = 64 << 10
BLOCKS_PER_FILE = 16
FILE_BYTES = LAYERS * PAGE_BYTES * BLOCKS_PER_FILE
RESULTS = Path(__file__).parent / "results"


class Memory:
    """Block memory of `files` chunks, one array, blocks of a file scattered."""

    def __init__(self, files: int) -> None:
        self.blocks = files * BLOCKS_PER_FILE
        self.array = np.empty((LAYERS, self.blocks, PAGE_BYTES), dtype=np.uint8)
        rng = np.random.default_rng(1)
        for layer in range(LAYERS):
            self.array[layer] = rng.integers(0, 256, (self.blocks, PAGE_BYTES), dtype=np.uint8)
        self.ids = rng.permutation(self.blocks).astype(np.int32)

    def describe(self) -> GroupMemory:
        stride = PAGE_BYTES
        return GroupMemory(
            tuple(
                Pages(self.array[layer].ctypes.data, stride, PAGE_BYTES) for layer in range(LAYERS)
            ),
            self.blocks,
        )

    def batch(self, files: int, folder: str) -> Batch:
        builder = BatchBuilder()
        for i in range(files):
            ids = self.ids[i * BLOCKS_PER_FILE : (i + 1) * BLOCKS_PER_FILE]
            builder.add(f"ns/{folder}/{i}-g0.kv", b"benchmark key %05d" % i, 0, 0, ids)
        return builder.build()


def engine_job(engine: NativeEngine, kind: str, batch: Batch) -> tuple[float, float]:
    """Seconds until the job was released (its bytes taken) and until it was finished."""
    start = time.perf_counter()
    getattr(engine, f"submit_{kind}")(1, batch)
    if not engine.wait([1], Phase.FINISHED, 300):
        raise RuntimeError("the engine did not finish")
    seconds = time.perf_counter() - start
    reports = engine.poll()
    for report in reports:
        if set(report.statuses) != {FileStatus.OK}:
            raise RuntimeError(f"{kind}: {report.statuses}")
    return reports[0].seconds, seconds


def plain_job(pool: ThreadPoolExecutor, work: Callable[[int], None], files: int) -> float:
    start = time.perf_counter()
    list(pool.map(work, range(files)))
    return time.perf_counter() - start


class Plain:
    """Whole files between contiguous memory and the same file system, one call each."""

    def __init__(self, memory: Memory, root: Path, threads: int) -> None:
        self.view = memoryview(memory.array.reshape(-1)).cast("B")
        self.root = root / "plain"
        self.root.mkdir()
        self.pool = ThreadPoolExecutor(threads)

    def part(self, i: int) -> memoryview:
        return self.view[i * FILE_BYTES : (i + 1) * FILE_BYTES]

    def write(self, i: int) -> None:
        fd = os.open(self.root / str(i), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        if os.write(fd, self.part(i)) != FILE_BYTES:
            raise RuntimeError("short write")
        os.close(fd)

    def read(self, i: int) -> None:
        fd = os.open(self.root / str(i), os.O_RDONLY)
        if os.readv(fd, [self.part(i)]) != FILE_BYTES:
            raise RuntimeError("short read")
        os.close(fd)

    def clear(self) -> None:
        for path in self.root.iterdir():
            path.unlink()


def settle() -> None:
    """Write-back of one round must not slow the next."""
    os.sync()


def measure(
    root: Path, memory: Memory, files: int, threads: int, rounds: int, behind: bool
) -> dict[str, object]:
    process = psutil.Process()
    before = process.memory_info().rss
    config = EngineConfig(io_threads=threads, load_only_threads=0, write_behind=behind)
    engine = NativeEngine(root, [memory.describe()], config, namespace=b"b" * 32, rank=0)
    plain = Plain(memory, root, threads)
    batch = memory.batch(files, "r0")
    times: dict[str, list[float]] = {
        key: [] for key in ("store", "released", "load", "write", "read")
    }
    for round_number in range(rounds):
        # Whoever comes first finds other caches and free pages than who comes second.
        order = ("engine", "plain") if round_number % 2 == 0 else ("plain", "engine")
        for side in order:
            if side == "engine":
                released, finished = engine_job(engine, "store", batch)
                times["released"].append(released)
                times["store"].append(finished)
            else:
                times["write"].append(plain_job(plain.pool, plain.write, files))
            settle()
        for side in order:
            if side == "engine":
                times["load"].append(engine_job(engine, "load", batch)[1])
            else:
                times["read"].append(plain_job(plain.pool, plain.read, files))
        shutil.rmtree(root / "ns")
        plain.clear()
        settle()
    rss = process.memory_info().rss - before
    times = {key: values[1:] for key, values in times.items()}  # the first round warms up
    engine.close()
    plain.pool.shutdown()
    plain.root.rmdir()
    gigabytes = files * FILE_BYTES / 1e9

    def rate(key: str) -> float:
        return round(gigabytes / statistics.median(times[key]), 2)

    def ratio(engine_key: str, plain_key: str) -> float:
        pairs = zip(times[engine_key], times[plain_key], strict=True)
        return round(statistics.median(plain_s / engine_s for engine_s, plain_s in pairs), 3)

    return {
        "threads": threads,
        "write_behind": behind,
        "store_gbps": rate("store"),
        "released_gbps": rate("released"),
        "write_gbps": rate("write"),
        "store_ratio": ratio("store", "write"),
        "load_gbps": rate("load"),
        "read_gbps": rate("read"),
        "load_ratio": ratio("load", "read"),
        "engine_resident_mib": round(rss / 2**20, 1),
    }


def python_costs(root: Path, memory: Memory, files: int) -> dict[str, float]:
    """Milliseconds of Python time for a submission of 64 files, microseconds for an empty poll."""
    engine = NativeEngine(
        root, [memory.describe()], EngineConfig(io_threads=2), namespace=b"b" * 32, rank=0
    )
    row = memory.batch(files, "r0")
    builder = BatchBuilder()
    for i in range(64):
        builder.add(f"ns/r0/abc/missing{i:050d}-g0.kv", row.keys[0], 0, 0, memory.ids[:16])
    batch = builder.build()
    submits = []
    for i in range(200):
        start = time.perf_counter()
        engine.submit_load(i, batch)
        submits.append(time.perf_counter() - start)
        engine.wait([i], Phase.FINISHED, 10)
        engine.poll()
    start = time.perf_counter()
    for _ in range(100_000):
        engine.poll()
    poll = (time.perf_counter() - start) / 100_000
    engine.close()
    return {
        "submit_64_ms_median": round(1e3 * statistics.median(submits), 4),
        "submit_64_ms_max": round(1e3 * max(submits), 4),
        "empty_poll_us": round(1e6 * poll, 3),
    }


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "?")
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release()}


def file_system(directory: Path) -> str:
    return subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE", "-T", str(directory)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, default=None, help="default: a temp directory")
    parser.add_argument("--files", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    memory = Memory(arguments.files)
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        root = Path(name)
        rows = [
            measure(root, memory, arguments.files, threads, arguments.rounds + 1, behind)
            for behind in (False, True)
            for threads in arguments.threads
        ]
        costs = python_costs(root, memory, arguments.files)
        kind = file_system(root)
    print(f"{arguments.files} files of {FILE_BYTES >> 20} MiB, {kind}, page cache; GB/s")
    print("threads  mode           store (taken)  write  ratio    load   read  ratio   engine RSS")
    for row in rows:
        mode = "write-behind" if row["write_behind"] else "write-through"
        print(
            f"{row['threads']:>7}  {mode:<13} {row['store_gbps']:>6} {row['released_gbps']:>7} "
            f"{row['write_gbps']:>6} "
            f"{row['store_ratio']:>6}  {row['load_gbps']:>6} {row['read_gbps']:>6} "
            f"{row['load_ratio']:>6}   {row['engine_resident_mib']:>6} MiB"
        )
    print(costs)
    if not arguments.no_save:
        RESULTS.mkdir(exist_ok=True)
        result = {
            "command": " ".join(["python", "benchmarks/bench_engine.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "file_system": kind,
            "file_bytes": FILE_BYTES,
            "files": arguments.files,
            "rounds": arguments.rounds,
            "rows": rows,
            "python": costs,
        }
        (RESULTS / "engine.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
