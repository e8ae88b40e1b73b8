"""Where the time of one hit goes: events of a request, in milliseconds from its submission.

VLLM_ENABLE_V1_MULTIPROCESSING=0 python benchmarks/gpu/profile_hit.py DIR
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

from engine import Arm, write_model

EVENTS: list[tuple[str, float]] = []


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    root = args.directory / "shelf"
    root.mkdir(parents=True, exist_ok=True)
    arm = Arm("kvshelf", str(root), write_model(args.directory / "model"))
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from kvshelf.vllm.connector import KvshelfConnector
    from kvshelf.vllm.manager import KvshelfManager
    from kvshelf.vllm.worker import KvshelfWorker

    for owner, names in (
        (KvshelfConnector, ("on_new_request", "get_num_new_matched_tokens")),
        (KvshelfManager, ("prepare_load", "prepare_store")),
        (KvshelfWorker, ("submit_load", "get_finished")),
        (Scheduler, ("schedule", "update_from_output")),
        (GPUModelRunner, ("execute_model",)),
    ):
        for name in names:
            traced(owner, name)
    for length in (4096, 65536):
        arm.ttft(length + 1, length)
        arm.settle()
        for _ in range(3):
            arm.forget()
            EVENTS.clear()
            start = time.perf_counter()
            seconds, cached, _ = arm.ttft(length + 1, length)
            print(f"== {length} tokens: {1e3 * seconds:.1f} ms, {cached} cached")
        steps = 0
        for name, at in EVENTS:
            steps += "schedule begins" in name
            if steps <= 3 or "Kvshelf" in name or at > start + seconds - 0.06:
                print(f"{1e3 * (at - start):9.2f}  {name}")
        print(f"steps: {steps}")


if __name__ == "__main__":
    main()
