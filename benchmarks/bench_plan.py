"""How long exact LRU over every capacity takes for a million requests, and how much memory.

    python benchmarks/bench_plan.py [--requests 1000000]

Makes a trace in Mooncake's format: conversations of several turns that begin with one of 50 system
prompts, 26 blocks a request in the mean, about as in the public conversation trace, with the turns
of some thousand conversations mixed. Then runs `kvshelf plan` on it in a process of its own.
Prints and writes benchmarks/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench_engine import RESULTS, file_system, machine
from kvshelf.plan.read import MOONCAKE_BLOCK_TOKENS

SYSTEM_PROMPTS = 50
SYSTEM_BLOCKS = 4
CONVERSATIONS = 4000
TURN_BLOCKS_MEAN = 6.5
TURNS_MEAN = 3


def make_trace_file(path: Path, requests: int, seed: int = 0) -> int:
    """Writes a trace; returns the blocks of all requests."""
    random = np.random.default_rng(seed)
    systems = [
        list(range(i * SYSTEM_BLOCKS, (i + 1) * SYSTEM_BLOCKS)) for i in range(SYSTEM_PROMPTS)
    ]
    fresh = SYSTEM_PROMPTS * SYSTEM_BLOCKS
    open_ones: list[list[int]] = [[] for _ in range(CONVERSATIONS)]
    slots = random.integers(CONVERSATIONS, size=requests).tolist()
    grows = (1 + random.geometric(1 / TURN_BLOCKS_MEAN, size=requests)).tolist()
    ends = (random.random(requests) < 1 / TURNS_MEAN).tolist()
    kinds = np.minimum(random.zipf(1.5, size=requests) - 1, SYSTEM_PROMPTS - 1).tolist()
    total = 0
    with path.open("w", encoding="ascii") as file:
        for number, (slot, grow, end, kind) in enumerate(
            zip(slots, grows, ends, kinds, strict=True)
        ):
            blocks = open_ones[slot] or list(systems[kind])
            blocks = blocks + list(range(fresh, fresh + grow))
            fresh += grow
            total += len(blocks)
            open_ones[slot] = [] if end else blocks
            tokens = len(blocks) * MOONCAKE_BLOCK_TOKENS
            file.write(
                f'{{"timestamp": {number * 10}, "input_length": {tokens}, "output_length": 200, '
                f'"hash_ids": {blocks}}}\n'
            )
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, default=None, help="default: a temp directory")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        path = Path(name) / "trace.jsonl"
        blocks = make_trace_file(path, arguments.requests)
        kind = file_system(Path(name))
        megabytes = path.stat().st_size >> 20
        command = [sys.executable, "-m", "kvshelf.cli", "plan", str(path), "--json"]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        # Of the one child so far; KiB on Linux. Processor time is what others on the machine leave.
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = json.loads(done.stdout)
        row = {
            "requests": arguments.requests,
            "blocks": blocks,
            "file_mib": megabytes,
            "seconds": round(seconds, 1),
            "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
            "load_average": round(os.getloadavg()[0], 1),
            "peak_resident_mib": used.ru_maxrss >> 10,
            "footprint_gb": round(answer["footprint_bytes"] / 1e9),
            "hit_percents": {
                f"{100 * r['capacity_share']:.0f}%": round(100 * r["hit_rate"], 2)
                for r in answer["rows"]
            },
        }
    print(row)
    if not arguments.no_save:
        RESULTS.mkdir(exist_ok=True)
        result = {
            "command": " ".join(["python", "benchmarks/bench_plan.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "file_system": kind,
            **row,
        }
        (RESULTS / "plan.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
