"""How long a short load takes while a long one is under way.

    python benchmarks/bench_fairness.py [--directory DIR] [--long 512] [--short 8]

Two jobs on one engine, files in the page cache: one of ``--long`` chunks of 8 MiB, and, submitted
while most of it waits, one of ``--short`` chunks. Reported in milliseconds: the short load alone,
the short one beside the long one, the long one alone and beside short ones, and what the short one
would wait if the first that comes were served first. Writes benchmarks/results/fairness.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench_engine import RESULTS, file_system, machine
from kvshelf import Chunk, EngineConfig, FileStatus, Identity, Shelf, make_key
from kvshelf.engine import Phase

BLOCK_BYTES = 8 << 20  # one block a chunk: a job of 512 is 4 GiB of reads


def chunks(first: int, count: int, block: int) -> list[Chunk]:
    """All into one block of memory: only the time is of interest."""
    return [Chunk(make_key((first + i).to_bytes(32, "big"), 0), [block]) for i in range(count)]


class Bench:
    def __init__(self, root: Path) -> None:
        self.blocks = np.full((4, BLOCK_BYTES), 7, dtype=np.uint8)
        config = EngineConfig(io_threads=2, load_only_threads=0, write_behind=False)
        self.shelf = Shelf.of_arrays(root, Identity({"model": "m"}), self.blocks, config=config)
        self._job = 0

    def submit(self, kind: str, wanted: list[Chunk]) -> int:
        self._job += 1
        getattr(self.shelf, f"submit_{kind}")(self._job, wanted)
        return self._job

    def finish(self, *jobs: int) -> dict[int, float]:
        """Milliseconds of each job, by the engine's clock."""
        assert self.shelf.wait(jobs, Phase.FINISHED, 300)
        reports = [r for r in self.shelf.poll() if r.phase is Phase.FINISHED]
        assert all(status is FileStatus.OK for r in reports for status in r.statuses)
        return {r.job_id: 1e3 * r.seconds for r in reports}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--long", type=int, default=512)
    parser.add_argument("--short", type=int, default=8)
    parser.add_argument("--files", type=int, default=64, help="of the long load, read in turn")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        bench = Bench(Path(name))
        kind = file_system(Path(name))
        bench.finish(bench.submit("store", chunks(0, arguments.files, 0)))
        repeats = -(-arguments.long // arguments.files)
        long = (chunks(0, arguments.files, 0) * repeats)[: arguments.long]
        short = chunks(0, arguments.short, 1)
        for _ in range(arguments.rounds):
            for label, wanted in (("short, alone", short), ("long, alone", long)):
                figures.setdefault(label, []).extend(
                    bench.finish(bench.submit("load", wanted)).values()
                )
            first = bench.submit("load", long)
            time.sleep(0.02)
            second = bench.submit("load", short)
            times = bench.finish(first, second)
            figures.setdefault("short, beside the long one", []).append(times[second])
            figures.setdefault("long, beside the short one", []).append(times[first])
        bench.shelf.close()
    medians = {label: round(statistics.median(values), 1) for label, values in figures.items()}
    medians["short, if the first came first"] = (
        medians["long, alone"] + medians["short, alone"] - 20
    )
    for label, value in medians.items():
        print(f"{label:36} {value:8.1f} ms")
    result = {
        "command": " ".join(["python", "benchmarks/bench_fairness.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "file_system": kind,
        "chunks": {"long": arguments.long, "short": arguments.short, "MiB each": 8},
        "milliseconds, medians": medians,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fairness.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
