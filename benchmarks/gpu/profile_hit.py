"""Where the time of one hit goes, on a real vLLM engine on a GPU.

Three questions, answered in one process, so that nothing else differs:

    steps     what the engine does from a request's arrival to its first token
    threads   what the I/O threads do meanwhile: processor time, in the kernel and outside
    again     how fast the very same chunks load into the very same blocks while vLLM stands still,
              and into blocks in random order

VLLM_ENABLE_V1_MULTIPROCESSING=0 python benchmarks/gpu/profile_hit.py DIR [--lengths 4096,65536]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine import Engine, write_model

GB = 1e9
EVENTS: list[tuple[str, float]] = []
TAP: dict[str, Any] = {}


def traced(owner: type, name: str) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = inner(*args, **kwargs)
        if name != "get_finished" or result:
            EVENTS.append((f"{owner.__name__}.{name} begins", start))
            EVENTS.append((f"{owner.__name__}.{name} ends", time.perf_counter()))
        return result

    setattr(owner, name, outer)


def tap_loads(worker_class: Any) -> None:
    """Remember the worker and the chunks of its last load, and how long each load took."""
    finish = worker_class._finish_load

    def outer_finish(self: Any, result: Any) -> Any:
        TAP["worker"], TAP["chunks"] = self, list(self._transfers.loads[result.job_id][0])
        TAP["load"] = (result.payload_bytes, result.seconds)
        return finish(self, result)

    worker_class._finish_load = outer_finish


def thread_times() -> dict[str, tuple[float, float]]:
    """(user, kernel) seconds of every thread of this process, by name and id."""
    tick = os.sysconf("SC_CLK_TCK")
    times = {}
    for path in Path("/proc/self/task").iterdir():
        try:
            text = (path / "stat").read_text()
        except OSError:
            continue
        name = text[text.index("(") + 1 : text.rindex(")")]
        rest = text[text.rindex(")") + 2 :].split()
        times[f"{name}#{path.name}"] = (int(rest[11]) / tick, int(rest[12]) / tick)
    return times


def spent(before: dict[str, tuple[float, float]]) -> dict[str, list[float]]:
    """Milliseconds (user, kernel) by thread kind since ``before``; kvshelf's by role."""
    total: dict[str, list[float]] = {}
    for name, (user, kernel) in thread_times().items():
        u, k = before.get(name, (0.0, 0.0))
        kind = name.split("#")[0]
        kind = kind[:8] if kind.startswith("kvs-") else "others"
        entry = total.setdefault(kind, [0.0, 0.0])
        entry[0] += 1e3 * (user - u)
        entry[1] += 1e3 * (kernel - k)
    return {kind: [round(v) for v in row] for kind, row in total.items() if sum(row) > 0}


def reload(chunks: list[Any], job_id: int) -> float:
    """GB/s of loading ``chunks`` once more, with vLLM standing still."""
    from kvshelf.engine import Phase

    shelf = TAP["worker"]._shelf
    start = time.perf_counter()
    shelf.submit_load(job_id, chunks)
    assert shelf.wait([job_id], Phase.FINISHED, 60)
    seconds = time.perf_counter() - start
    (report,) = shelf.poll()
    assert all(status == 0 for status in report.statuses), report
    return float(report.payload_bytes / seconds / GB)


def again(result: dict[str, Any]) -> None:
    chunks = TAP["chunks"]
    ids = np.concatenate([chunk.block_ids for chunk in chunks])
    runs = int(np.count_nonzero(np.diff(ids) != 1)) + 1
    # Runs say whether neighbors in the file are neighbors in memory.
    result["blocks"], result["runs_of_consecutive_blocks"] = len(ids), runs
    result["first_block_ids"] = ids[:40].tolist()
    order = np.random.default_rng(1).permutation(ids)
    spread, at = [], 0
    for chunk in chunks:
        spread.append(chunk._replace(block_ids=order[at : at + len(chunk.block_ids)]))
        at += len(chunk.block_ids)
    job = 1 << 40
    for name, wanted in (("same", chunks), ("random", spread), ("same 2", chunks)):
        rates = []
        before = thread_times()
        for _ in range(5):
            job += 1
            rates.append(round(reload(wanted, job), 1))
        result[f"again, {name} blocks, GB/s"] = rates
        result[f"again, {name} blocks, thread ms"] = spent(before)


def timeline(title: str, start: float) -> None:
    print(f"-- {title}")
    for name, at in EVENTS:
        print(f"{1e3 * (at - start):9.2f}  {name}")


def profile(arm: Engine, length: int, *, restarted: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"tokens": length, "hits": []}
    if not restarted:
        arm.first_token(length + 1, length)
        arm.settle()
    for i in range(5):
        arm.forget()
        EVENTS.clear()
        before = thread_times()
        start = time.perf_counter()
        seconds, cached, _ = arm.first_token(length + 1, length)
        size, load_seconds = TAP.get("load", (0, 1.0))
        result["hits"].append(
            {
                "ttft_ms": round(1e3 * seconds, 1),
                "cached": cached,
                "load_ms": round(1e3 * load_seconds, 1),
                "load GB/s": round(size / load_seconds / GB, 1),
                "thread ms": spent(before),
            }
        )
        if i in (0, 4):
            timeline(f"{length} tokens, hit {i + 1}", start)
    EVENTS.clear()
    start = time.perf_counter()
    arm.first_token(length + 1, length)
    timeline(f"{length} tokens, in the GPU", start)
    if not restarted:
        again(result)
    # Floor: a request of the same engine that loads nothing and computes 17 tokens.
    floor = sorted(arm.first_token(17, 77_000 + i)[0] for i in range(9))
    result["floor_ms"] = round(1e3 * floor[4], 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lengths", default="4096,65536")
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--restarted", action="store_true", help="the files are there: first hits")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    root = args.directory / "shelf"
    root.mkdir(parents=True, exist_ok=True)
    arm = Engine("kvshelf", args.shape, root, write_model(args.directory / "model", args.shape))
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as GPUModelRunner2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from kvshelf.shelf import Shelf
    from kvshelf.vllm.connector import KvshelfConnector
    from kvshelf.vllm.scheduler.manager import KvshelfManager
    from kvshelf.vllm.worker.worker import KvshelfWorker

    tap_loads(KvshelfWorker)
    for owner, names in (
        (KvshelfConnector, ("on_new_request", "get_num_new_matched_tokens")),
        (KvshelfManager, ("prepare_load", "prepare_store")),
        (Shelf, ("submit_lookup", "submit_probe", "submit_load")),
        (EngineCore, ("preprocess_add_request", "add_request")),
        (KvshelfWorker, ("submit_load", "get_finished")),
        (Scheduler, ("schedule", "update_from_output")),
        (GPUModelRunner, ("execute_model",)),
        (GPUModelRunner2, ("execute_model",)),
    ):
        for name in names:
            traced(owner, name)
    for _ in range(3):  # compiled: computing, and a hit in the GPU
        arm.first_token(4097, 123_456)
    arm.settle()
    results = [
        profile(arm, int(length), restarted=args.restarted) for length in args.lengths.split(",")
    ]
    for result in results:
        print(json.dumps(result), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
