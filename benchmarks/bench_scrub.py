"""How fast a scrub without limits is, against plain reads of the same files in the same run.

    python benchmarks/bench_scrub.py [--directory DIR] [--files 128] [--rounds 5]

Two shelves: files of 4 MiB, and small ones of 16 KiB, which show what a file costs.
Each round drops the files from the page cache and reads them: with read() of 1 MiB, with O_DIRECT,
and by a scrub; the order turns from round to round. Prints medians, and medians of the ratios in a
round, and writes them to benchmarks/results/scrub.json.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench_engine import RESULTS, file_system, machine
from kvshelf import Chunk, FileStatus, Identity, Shelf, make_key
from kvshelf.upkeep.scrub.scrubber import Scrubber
from kvshelf.upkeep.scrub.settings import ScrubSettings

STEP = 1 << 20


def make_shelf(root: Path, files: int, payload_bytes: int) -> list[Path]:
    """Chunk files of random bytes, on the disk and not in the page cache."""
    blocks = np.random.default_rng(0).integers(0, 256, (8, payload_bytes), dtype=np.uint8)
    paths = []
    with Shelf.of_arrays(root, Identity({"model": "bench"}), blocks) as shelf:
        for number in range(files):
            key = make_key(np.random.default_rng(number).bytes(32), 0)
            if shelf.store([Chunk(key, [number % 8])]) != [FileStatus.OK]:
                raise RuntimeError("a chunk was not stored")
            paths.append(root / shelf.path_of(key))
    return sorted(paths)


def drop(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(paths: list[Path], flags: int) -> None:
    with mmap.mmap(-1, STEP) as buffer:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | flags)
            while os.readv(descriptor, [buffer]):
                pass
            os.close(descriptor)


def scrub(root: Path, files: int) -> None:
    run = Scrubber(root, ScrubSettings(0, 0, from_start=True))
    if list(run.run()) or run.totals.files != files:
        raise RuntimeError("the scrub did not find what there is")


def measure(root: Path, files: int, payload_bytes: int, rounds: int) -> dict[str, float]:
    paths = make_shelf(root, files, payload_bytes)
    size = sum(path.stat().st_size for path in paths)
    ways: list[tuple[str, Callable[[], None]]] = [
        ("read", lambda: read_all(paths, 0)),
        ("direct", lambda: read_all(paths, os.O_DIRECT)),
        ("scrub", lambda: scrub(root, files)),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _ in ways}
    cpu = 0.0
    for number in range(rounds):
        for name, way in ways[number % 3 :] + ways[: number % 3]:
            drop(paths)
            begun, begun_cpu = time.perf_counter(), time.process_time()
            way()
            seconds[name].append(time.perf_counter() - begun)
            cpu += (time.process_time() - begun_cpu) * (name == "scrub")
    row = {f"{name}_mb_s": size / 1e6 / statistics.median(s) for name, s in seconds.items()}
    row |= {f"{name}_files_s": files / statistics.median(s) for name, s in seconds.items()}
    for name in ("read", "direct"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["scrub"], strict=True)]
        row[f"scrub_over_{name}"] = statistics.median(ratios)
    row["scrub_cpu_s_per_gb"] = cpu / rounds / (size / 1e9)
    return {name: round(value, 3) for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, default=None, help="default: a temp directory")
    parser.add_argument("--files", type=int, default=128, help="of 4 MiB; 16 times of 16 KiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        kind = file_system(Path(name))
        for title, files, payload in [
            ("4 MiB", arguments.files, 4 << 20),
            ("16 KiB", 16 * arguments.files, 12 << 10),
        ]:
            rows[title] = measure(Path(name) / title[:2].strip(), files, payload, arguments.rounds)
            print(f"files of {title}, {kind}: {rows[title]}")
    if not arguments.no_save:
        result = {
            "command": " ".join(["python", "benchmarks/bench_scrub.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "file_system": kind,
            "files": arguments.files,
            "rounds": arguments.rounds,
            "results": rows,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "scrub.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
