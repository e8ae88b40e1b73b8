"""Python time that the adapter takes on vLLM's own threads, in milliseconds.

    python benchmarks/bench_adapter.py [--directory DIR] [--out FILE]

The scheduler's thread: a first scan over 4,096 unknown keys with the end of its step, and a scan
over known keys; the same in an epoch after a change of weights, whose keys are masked, in turn. The
worker's thread: submitting jobs of 64 chunks of 16 blocks, and a poll without results. Medians of
many rounds.
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
from kvshelf.vllm.scheduler.chunk_table import ChunkTable
from kvshelf.vllm.scheduler.epochs import Epochs
from kvshelf.vllm.scheduler.manager import KvshelfManager
from kvshelf.vllm.specs import ChunkKeysSpec
from kvshelf.vllm.worker.worker import KvshelfWorker

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


def make_manager(directory: Path) -> KvshelfManager:
    table = ChunkTable(
        hit_ttl_seconds=60, miss_ttl_seconds=60, failed_ttl_seconds=60, keys_max=10**6
    )
    return KvshelfManager(
        Shelf(directory, IDENTITY),
        table,
        Settings(),
        chunk_bytes=1 << 25,
        chunk_tokens=256,
        emit_events=False,
    )


def scheduler(directory: Path, rounds: int) -> dict[str, list[float]]:
    """Two managers in turn, round by round, so that both meet the same machine."""
    plain, masked = make_manager(directory), make_manager(directory)
    epochs = Epochs()
    masked.follow(epochs)
    epochs.begin(["weights"])
    epochs.settle(["other weights"])
    assert epochs.mask
    figures: dict[str, list[float]] = {}
    for round_number in range(rounds):
        for manager, kind in ((plain, ""), (masked, ", masked")):
            epochs.started(CONTEXT.req_id)
            manager.begin_scan(CONTEXT.req_id)
            for name, milliseconds in one_round(manager, round_number, rounds).items():
                figures.setdefault(name + kind, []).append(milliseconds)
    plain.shutdown()
    masked.shutdown()
    return figures


def one_round(manager: KvshelfManager, round_number: int, rounds: int) -> dict[str, float]:
    figures: dict[str, float] = {}

    def scan(keys: list[bytes]) -> None:
        for each in keys:
            manager.lookup(each, CONTEXT)

    def prefetch(keys: list[bytes]) -> None:
        manager.prefetch([KeyRun(keys, chunk_tokens=256, is_prefix=True)])

    others = [key((rounds + round_number) * KEYS + i) for i in range(KEYS)]
    figures["4,096 keys of a new request"] = timed(lambda: prefetch(others))
    settle(manager)
    keys = [key(round_number * KEYS + i) for i in range(KEYS)]
    figures["4,096 unknown keys: scan"] = first = timed(lambda: scan(keys))
    figures["end of that step"] = end = timed(lambda: manager.on_schedule_end(STEP_END))
    started = time.perf_counter()
    settle(manager)
    figures["until all are answered"] = 1e3 * (time.perf_counter() - started) + first + end
    figures["4,096 known keys: scan"] = timed(lambda: scan(keys))
    figures["end of a step without lookups"] = timed(lambda: manager.on_schedule_end(STEP_END))
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
    ratios = {
        name: round(medians[f"{name}, masked"] / value, 3)
        for name, value in medians.items()
        if f"{name}, masked" in medians
    }
    for name, value in ratios.items():
        print(f"masked / plain: {name:36s} {value:6.3f}")
    for name, value in medians.items():
        print(f"{name:36s} {value:9.4f} ms   max {max(figures[name]):9.4f}")
    result = {
        "command": " ".join(["python", "benchmarks/bench_adapter.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "milliseconds, medians": medians,
        "masked / plain": ratios,
        "maxima": {name: round(max(values), 4) for name, values in figures.items()},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
