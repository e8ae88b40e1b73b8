"""Runs many random fault schedules, in processes of their own.

    python -m tests.faults.schedules [--first 0] [--count 1000] [--processes 2] [--planted]
    KVSHELF_TEST_SEED=17 python -m tests.faults.schedules

Prints the seed and what does not hold of each that fails; exit status 1 if any does. ``--planted``
leaves checksums out, to see that wrong bytes are found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .pool import calls_of_process, preloaded_pool, results_of
from .schedule import Done, run_schedule

SEED_VARIABLE = "KVSHELF_TEST_SEED"
PROGRESS_SCHEDULES = 500


def run_seed(seed: int, planted: bool = False) -> Done | str:
    """What it did, or what does not hold. In a process of a pool."""
    try:
        return run_schedule(seed, calls_of_process(), planted=planted)
    except Exception as error:
        text = str(error)
        return text if text.startswith("seed ") else f"seed {seed}: {type(error).__name__}: {text}"


def seeds(first: int, count: int) -> Iterator[int]:
    """The one that the environment names, or a range."""
    chosen = os.environ.get(SEED_VARIABLE)
    return iter([int(chosen)] if chosen else range(first, first + count))


@dataclass(slots=True)
class Total:
    """The sum of many schedules; ``failed``: what did not hold, each with its seed."""

    first: int
    schedules: int = 0
    solo: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)
    done: Done = field(default_factory=lambda: Done(-1))

    def add(self, result: Done | str) -> None:
        self.schedules += 1
        if isinstance(result, str):
            self.failed.append(result)
            return
        self.solo += result.seed % 2 == 0
        self.done.statuses += result.statuses
        self.done.faults += result.faults
        self.done.jobs += result.jobs
        self.done.verified_bytes += result.verified_bytes

    def line(self) -> str:
        done = self.done
        return (
            f"{self.schedules} schedules from seed {self.first} on: {done.jobs} jobs, "
            f"{done.faults.total()} faults of {len(done.faults)} kinds, "
            f"{done.verified_bytes / 1e6:.1f} MB verified, {len(self.failed)} failed, "
            f"{self.seconds:.1f} s"
        )

    def as_json(self) -> dict[str, object]:
        done = self.done
        return {
            "first_seed": self.first,
            "schedules": self.schedules,
            "solo": self.solo,
            "crowd": self.schedules - len(self.failed) - self.solo,
            "failed": self.failed,
            "jobs": done.jobs,
            "chunks_by_kind_and_status": _nested(done.statuses),
            "faults": done.faults.total(),
            "faults_by_operation": _nested(done.faults),
            "verified_bytes": done.verified_bytes,
            "seconds": round(self.seconds, 1),
        }


def _nested(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (outer, inner), count in sorted(counts.items()):
        nested.setdefault(outer, {})[inner] = count
    return nested


def run_many(
    first: int,
    count: int,
    processes: int,
    *,
    planted: bool = False,
    on_progress: Callable[[Total], None] = lambda _: None,
) -> Total:
    """Runs these seeds, or the one that the environment names. Prints failures as they come, and
    calls ``on_progress`` now and then."""
    total = Total(first)
    start = time.monotonic()
    with preloaded_pool(processes) as pool:
        for result in results_of(pool, run_seed, seeds(first, count), planted):
            total.add(result)
            total.seconds = time.monotonic() - start
            if total.schedules % PROGRESS_SCHEDULES == 0:
                on_progress(total)
            if isinstance(result, str):
                print(f"{result} ({SEED_VARIABLE} runs it again)", flush=True)  # noqa: T201
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--planted", action="store_true", help="leave out checksums")
    arguments = parser.parse_args()
    total = run_many(
        arguments.first, arguments.count, arguments.processes, planted=arguments.planted
    )
    print(total.line())  # noqa: T201
    sys.exit(1 if total.failed else 0)


if __name__ == "__main__":
    main()
