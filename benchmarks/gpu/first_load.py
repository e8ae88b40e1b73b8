"""The first loads of a process, without vLLM: the time to get ready, and each load.

    python benchmarks/gpu/first_load.py DIR [--threads 12] [--page-bytes 65536]

One process stores four sets of 16 chunks; a second one opens the shelf and loads them one after
the other, as the first hits of an engine would be. Files stay in the page cache. Prints the
milliseconds of each load, of the opening, and of one copy by torch before it all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transfer import Bench, Shape, run_job

from kvshelf import EngineConfig
from kvshelf.engine import Phase

SETS = 4
CHUNKS = 16


def bench_of(args: argparse.Namespace) -> Bench:
    shape = Shape(32, args.page_bytes, max(1, (32 << 20) // (32 * args.page_bytes)))
    return Bench(args.directory, shape, CHUNKS, args.threads, 1)


def child(args: argparse.Namespace) -> None:
    bench = bench_of(args)
    torch.cuda.synchronize()
    began = time.perf_counter()
    shelf = bench.shelf("first", EngineConfig(io_threads=args.threads, store_queue_seconds=120))
    opened = time.perf_counter() - began
    times = []
    for i in range(SETS):
        chunks = bench.chunk_list(bench.target, CHUNKS, i)
        times.append(run_job(shelf, args.kind, chunks, i + 1, Phase.FINISHED))
    shelf.close()
    row = {"open_ms": 1e3 * opened, f"{args.kind}s_ms": [round(1e3 * t, 1) for t in times]}
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--page-bytes", type=int, default=65536)
    parser.add_argument("--kind", choices=("store", "load"))
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    if args.kind:
        child(args)
        return
    for kind in ("store", "load", "load"):
        command = [sys.executable, __file__, str(args.directory), "--kind", kind]
        command += ["--threads", str(args.threads), "--page-bytes", str(args.page_bytes)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
