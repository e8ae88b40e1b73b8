"""Python time that the adapter takes on vLLM's own threads, in milliseconds.

    python benchmarks/bench_adapter.py [--directory DIR] [--out FILE]

The scheduler's thread: a first scan over 4,096 unknown keys with the end of its step, and a scan
over known keys. The worker's thread: submitting jobs of 64 chunks of
16 blocks, and a poll without results. Medians of many rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from vllm.v1.kv_offload.base import GPULoadStoreSpec, ReqContext, ScheduleEndContext

from kvshelf import EngineConfig, Identity, Shelf, make_key
from kvshelf.config import Settings
from kvshelf.vllm.compat import KeyRun
from kvshelf.vllm.manager import KvshelfManager
from kvshelf.vllm.presence import Presence
from kvshelf.vllm.specs import ChunkKeysSpec
from kvshelf.vllm.worker import KvshelfWorker

KEYS, CHUNKS, PER_CHUNK = 4096, 64, 16
CONTEXT = ReqContext(req_id="r")
STEP_END = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())
IDENTITY = Identity({"model": "bench"})


def key(i: int) -> bytes:
    return make_key(i.to_bytes(32, "big"), 0)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def settle(manager: KvshelfManager) -> None:
    while manager._lookups._in_flight:
        manager.on_schedule_end(STEP_END)
        time.sleep(0.0002)


def scheduler(directory: Path, rounds: int) -> dict[str, list[float]]:
    presence = Presence(
        hit_ttl_seconds=60, miss_ttl_seconds=60, failed_ttl_seconds=60, keys_max=10**6
    )
    manager = KvshelfManager(
        Shelf(directory, IDENTITY),
        presence,
        Settings(),
        chunk_bytes=1 << 25,
        chunk_tokens=256,
        num_workers=1,
        emit_events=False,
    )
    figures: dict[str, list[float]] = {}

    def scan(keys: list[bytes]) -> None:
        for each in keys:
            manager.lookup(each, CONTEXT)

    def prefetch(keys: list[bytes]) -> None:
        manager.prefetch([KeyRun(keys, chunk_tokens=256, is_prefix=True)])

    for round_number in range(rounds):
        others = [key((rounds + round_number) * KEYS + i) for i in range(KEYS)]
        figures.setdefault("4,096 keys of a new request", []).append(
            timed(lambda: prefetch(others))  # noqa: B023 - called at once
        )
        settle(manager)
        keys = [key(round_number * KEYS + i) for i in range(KEYS)]
        first = timed(lambda: scan(keys))  # noqa: B023 - called at once
        end = timed(lambda: manager.on_schedule_end(STEP_END))
        figures.setdefault("4,096 unknown keys: scan", []).append(first)
        figures.setdefault("end of that step", []).append(end)
        started = time.perf_counter()
        settle(manager)
        figures.setdefault("until all are answered", []).append(
            1e3 * (time.perf_counter() - started) + first + end
        )
        figures.setdefault("4,096 known keys: scan", []).append(timed(lambda: scan(keys)))  # noqa: B023
        figures.setdefault("end of a step without lookups", []).append(
            timed(lambda: manager.on_schedule_end(STEP_END))
        )
    manager.shutdown()
    return figures


def worker(directory: Path, rounds: int) -> dict[str, list[float]]:
    memory = np.zeros((CHUNKS * PER_CHUNK, 4096), dtype=np.uint8)
    config = EngineConfig(io_threads=2, load_only_threads=0)
    side = KvshelfWorker(
        Shelf.of_arrays(directory, IDENTITY, memory, config=config),
        group_ids=[0],
        blocks_per_chunk=PER_CHUNK,
        load_timeout_seconds=30,
        close_timeout_seconds=5,
    )
    keys = ChunkKeysSpec([key(10**9 + i) for i in range(CHUNKS)])
    ids = GPULoadStoreSpec(
        list(range(CHUNKS * PER_CHUNK)), group_sizes=[CHUNKS * PER_CHUNK], block_indices=[0]
    )
    figures: dict[str, list[float]] = {}
    job = 0
    for _ in range(rounds):
        for kind in ("store", "load"):
            job += 1
            arguments = (job, ids, keys) if kind == "store" else (job, keys, ids)
            submit = getattr(side, f"submit_{kind}")
            figures.setdefault(f"submit a {kind} of 64 chunks", []).append(
                timed(lambda: submit(*arguments))  # noqa: B023
            )
            assert side._shelf.drain(60)
            side.get_finished()
        figures.setdefault("poll without results", []).append(timed(side.get_finished))
    side.shutdown()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/adapter.json")
    args = parser.parse_args()
    directory = args.directory or Path(tempfile.mkdtemp(prefix="kvshelf-bench-"))
    try:
        figures = scheduler(directory, args.rounds) | worker(directory, args.rounds)
    finally:
        if args.directory is None:
            shutil.rmtree(directory)
    medians = {name: round(statistics.median(values), 4) for name, values in figures.items()}
    for name, value in medians.items():
        print(f"{name:36s} {value:9.4f} ms   max {max(figures[name]):9.4f}")
    result = {
        "command": " ".join(["python", "benchmarks/bench_adapter.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "milliseconds, medians": medians,
        "maxima": {name: round(max(values), 4) for name, values in figures.items()},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
