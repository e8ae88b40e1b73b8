"""How long a lookup of 4,096 chunks takes.

    python benchmarks/bench_lookup.py [--directory DIR] [--keys 4096] [--rounds 50]
    python benchmarks/bench_lookup.py --latency-ms 2

Half of the keys exist, and every key counts for itself. With --latency-ms all exist, on a file
system where each stat takes so long (bench_faults.py says what that needs); their folders are known
to the kernel, so that a chunk is one such call. Reports the whole lookup, from submission to the
polled result, and how long the caller was held by the submission. Prints and writes
benchmarks/results/lookup.json or lookup-slow.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench_engine import RESULTS, file_system, machine
from bench_faults import Mount, why_not
from kvshelf.engine.base import EngineConfig, FileStatus, Phase
from kvshelf.engine.native import NativeEngine


def make_files(root: Path, keys: int, every: int) -> list[str]:
    """Paths in the layout of a shelf; each ``every``th exists (sparse, as long as a chunk)."""
    paths = []
    for i in range(keys):
        name = hashlib.sha256(str(i).encode()).hexdigest()
        path = f"model-0123456789ab/r0/{name[:3]}/{name}-g0.kv"
        paths.append(path)
        if i % every == 0:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            with (root / path).open("wb") as file:
                file.truncate(32 << 20)
    return paths


def measure(
    root: Path, paths: list[str], found: int, arguments: argparse.Namespace
) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of each round: in all, of the submission, of the poll."""
    total, submit, poll = [], [], []
    config = EngineConfig(lookup_threads=arguments.threads)
    engine = NativeEngine(root, [], config, namespace=b"b" * 32, rank=0)
    for job in range(arguments.rounds):
        start = time.perf_counter()
        engine.submit_lookup(job, paths)
        submitted = time.perf_counter()
        if not engine.wait([job], Phase.FINISHED, 30):
            raise RuntimeError("the lookup did not finish")
        polling = time.perf_counter()
        (report,) = engine.poll()
        end = time.perf_counter()
        if report.statuses.count(FileStatus.OK) != found:
            raise RuntimeError("wrong answer")
        total.append(1e3 * (end - start))
        submit.append(1e3 * (submitted - start))
        poll.append(1e3 * (end - polling))
    engine.close()
    return total, submit, poll


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, default=None, help="default: a temp directory")
    parser.add_argument("--keys", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=EngineConfig().lookup_threads)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    if arguments.latency_ms and (reason := why_not()):
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        if arguments.latency_ms:
            mount = Mount(Path(name), "--cache-s", "3600")
            paths = make_files(mount.source, arguments.keys, every=1)
            for path in paths:
                (mount.path / path).stat()
            mount.inject(metadata_latency_ms=arguments.latency_ms)
            kind = f"{arguments.latency_ms} ms a stat"
            try:
                times = measure(mount.path, paths, arguments.keys, arguments)
            finally:
                mount.close()
        else:
            paths = make_files(Path(name), arguments.keys, every=2)
            kind = file_system(Path(name))
            times = measure(Path(name), paths, (arguments.keys + 1) // 2, arguments)
    total, submit, poll = times
    row = {
        "lookup_ms_median": round(statistics.median(total), 3),
        "lookup_ms_max": round(max(total), 3),
        "submit_ms_median": round(statistics.median(submit), 3),
        "poll_ms_median": round(statistics.median(poll), 3),
    }
    print(f"{arguments.keys} keys, {arguments.threads} threads, {kind}: {row}")
    if not arguments.no_save:
        RESULTS.mkdir(exist_ok=True)
        result = {
            "command": " ".join(["python", "benchmarks/bench_lookup.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "file_system": kind,
            "keys": arguments.keys,
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            **row,
        }
        file = "lookup-slow.json" if arguments.latency_ms else "lookup.json"
        (RESULTS / file).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
