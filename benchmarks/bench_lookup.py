"""How long a lookup of 4,096 chunks takes.

    python benchmarks/bench_lookup.py [--directory DIR] [--keys 4096] [--rounds 50]
    python benchmarks/bench_lookup.py --latency-ms 2

Half of the keys exist, and every key counts for itself. With --latency-ms each fstatat() takes so
much longer: a library that sleeps is put before the C library's (needs g++). Reports the whole
lookup, from submission to the polled result, and how long the caller was held by the submission.
Prints and writes benchmarks/results/lookup.json or lookup-slow.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench_engine import RESULTS, file_system, machine
from kvshelf.engine import EngineConfig, FileStatus, Phase
from kvshelf.engine.native import NativeEngine

SLOW_STAT = "slow_stat.so"
SOURCE = """
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
extern "C" int fstatat(int folder, const char* path, struct stat* found, int flags) noexcept {
  static auto* real = (int (*)(int, const char*, struct stat*, int))dlsym(RTLD_NEXT, "fstatat");
  static const long us = atol(getenv("SLOW_STAT_US"));
  const timespec time = {us / 1000000, us % 1000000 * 1000};
  nanosleep(&time, nullptr);
  return real(folder, path, found, flags);
}
"""


def make_files(root: Path, keys: int) -> list[str]:
    """Paths in the layout of a shelf; every other one exists (sparse, as long as a chunk)."""
    paths = []
    for i in range(keys):
        name = hashlib.sha256(str(i).encode()).hexdigest()
        path = f"model-0123456789ab/r0/{name[:3]}/{name}-g0.kv"
        paths.append(path)
        if i % 2 == 0:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            with (root / path).open("wb") as file:
                file.truncate(32 << 20)
    return paths


def run_with_slow_stat(latency_ms: float) -> None:
    """This command once more, with the library that sleeps; ends this process."""
    with tempfile.TemporaryDirectory(prefix="kvshelf-bench-") as folder:
        library = Path(folder) / SLOW_STAT
        source = library.with_suffix(".cpp")
        source.write_text(SOURCE)
        command = ["g++", "-O2", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
        subprocess.run(command, check=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "SLOW_STAT_US": str(int(1000 * latency_ms)),
        }
        done = subprocess.run([sys.executable, *sys.argv], env=environment, check=False)
    raise SystemExit(done.returncode)


def measure(
    root: Path, paths: list[str], arguments: argparse.Namespace
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
        if report.statuses.count(FileStatus.OK) != (arguments.keys + 1) // 2:
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
    if arguments.latency_ms and SLOW_STAT not in os.environ.get("LD_PRELOAD", ""):
        run_with_slow_stat(arguments.latency_ms)
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        root = Path(name)
        kind = file_system(root)
        if arguments.latency_ms:
            kind += f", {arguments.latency_ms} ms a stat"
        total, submit, poll = measure(root, make_files(root, arguments.keys), arguments)
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
