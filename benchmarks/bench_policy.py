"""Orders of eviction on real request traces: hit rate at several capacities.

    python benchmarks/bench_policy.py --traces DIR

DIR holds conversation_trace.jsonl and synthetic_trace.jsonl of the Mooncake paper (FAST 2025,
github.com/kvcache-ai/Mooncake); without them there is nothing to measure, and it says so. The
simulated evictor frees 1% of the capacity beyond need each time. The factor for reused chunks is
looked at on the first halves of the traces, and judged on the second. "stretched": time runs 24
times slower, as if the hour of the trace were a day, so that a touch interval of 600 s is to the
age of what is evicted as it is on a shelf that keeps a day and not an hour.
"whole seconds" and "two seconds" are file systems that keep no finer times; "read": somebody else
reads the whole shelf. With modification times (docs/explain/eviction.md) that changes nothing.
Prints and writes benchmarks/results/policy.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench_engine import RESULTS, machine
from kvshelf.plan.answer import SLACK
from kvshelf.plan.lru import lru_curve
from kvshelf.plan.read import read_trace
from kvshelf.plan.simulate import STEP_SECONDS, AgeFunction, ByAge, Order, Use, plain_age, simulate
from kvshelf.plan.trace import Trace
from kvshelf.upkeep.evict.policy import REUSED_FACTOR, effective_age
from orders import AtRandom, ByStore, Optimum, stepped

TRACES = ("conversation_trace", "synthetic_trace")
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
TOUCH_INTERVAL_SECONDS = 600.0
STRETCH = 24
READ_SECONDS = 600.0
BINS = 24
FEW = 200


def by_factor(factor: float) -> AgeFunction:
    return lambda age, reused, _idle: np.where(reused, age / factor, age)


def by_hazard(age: Any, reused: Any, _idle: Any) -> Any:
    """Learns from the shelf itself: one over the rate at which chunks of a class and age leave it.

    In a steady state the number of chunks by age falls as they are used again (or evicted), so the
    slope of its logarithm is that rate; made to fall with age (pool adjacent violators).
    """
    edges = np.geomspace(5, 1e6, BINS)
    middles = np.sqrt(edges[1:] * edges[:-1])
    result = np.array(age)
    for kind in (False, True):
        members = reused == kind
        if np.count_nonzero(members) < FEW:
            continue
        counts = np.histogram(age[members], edges)[0] + 0.5
        rates = -np.diff(np.log(counts / np.diff(edges))) / np.diff(middles)
        weights = counts[1:] * counts[:-1] / (counts[1:] + counts[:-1])
        pools: list[list[float]] = []
        for rate, weight in zip(np.maximum(rates, 0), weights, strict=True):
            pools.append([rate, weight, 1])
            while len(pools) > 1 and pools[-2][0] <= pools[-1][0]:
                (x, v, m), (y, w, n) = pools[-2:]
                pools[-2:] = [[(x * v + y * w) / (v + w), v + w, m + n]]
        falling = np.concatenate([[rate] * int(size) for rate, _, size in pools])
        ranks = 1 / np.maximum(falling, 1e-7) + 1e-3 * middles[1:]
        result[members] = np.interp(age[members], middles[1:], ranks) + 1e-6 * age[members]
    return result


def aged(age: AgeFunction, interval: float = TOUCH_INTERVAL_SECONDS) -> Callable[[Trace], Order]:
    return lambda trace: ByAge(trace, age, touch_interval_seconds=interval)


class WholeSeconds(ByAge):
    """Chunks 1 ms apart on a file system of whole seconds: those of one second have no order."""

    def ages(self, resident: Any) -> Any:
        kept = self._accessed
        ties = np.random.default_rng(0).random(len(kept))
        self._accessed = np.floor(kept) + ties
        found = super().ages(resident)
        self._accessed = kept
        return found


class ReadByOthers(ByAge):
    """A backup reads all chunks every READ_SECONDS, and an access time says when they were used."""

    _due = READ_SECONDS

    def use(self, use: Use) -> None:
        if use.now >= self._due:
            self._due = use.now + READ_SECONDS
            ties = np.random.default_rng(int(use.now)).random(len(self._accessed))
            self._accessed = np.where(np.isfinite(self._accessed), use.now + ties, -np.inf)
        super().use(use)


ORDERS: dict[str, Callable[[Trace], Order]] = {
    "optimum (knows the future)": Optimum,
    "LRU, tail used last": lambda trace: stepped(trace, plain_age, STEP_SECONDS),
    "LRU, prefix order": aged(plain_age, 0),
    "LRU, prefix order, 600 s": aged(plain_age),
    "FIFO": ByStore,
    "random": lambda _: AtRandom(),
    "hazard by class": aged(by_hazard, 0),
    "kvshelf": aged(effective_age, 0),
    "kvshelf, 600 s": aged(effective_age),
    "whole seconds, steps of 1 ms": lambda trace: WholeSeconds(trace, effective_age),
    "whole seconds, steps of 1 s": lambda trace: stepped(trace, plain_age, -1.0),
    "two seconds, steps of 2 s": lambda trace: stepped(trace, plain_age, -2.0),
    "read every 10 minutes, by access times": lambda trace: ReadByOthers(trace, effective_age),
}
STRETCHED = {
    "LRU, prefix order, 600 s, stretched": aged(plain_age),
    "kvshelf, 600 s, stretched": aged(effective_age),
}


def hit_percents(trace: Trace, order: Callable[[Trace], Order]) -> list[float]:
    percents = []
    for share in SHARES:
        capacity = max(1, int(share * trace.distinct_blocks))
        hits = simulate(trace, capacity, order(trace), slack=SLACK).hits
        percents.append(round(100 * hits / len(trace.blocks), 2))
    return percents


def show(name: str, percents: list[float]) -> None:
    print(f"  {name:38}", *(f"{each:6.2f}" for each in percents), flush=True)


def whole_trace(trace: Trace) -> dict[str, list[float]]:
    curve = lru_curve(trace)
    capacities = [max(1, int(share * trace.distinct_blocks)) for share in SHARES]
    found = {
        "LRU by stack distance, nothing beyond need": [
            round(100 * curve.hits_at(each) / len(trace.blocks), 2) for each in capacities
        ]
    }
    for name, order in ORDERS.items():
        found[name] = hit_percents(trace, order)
    slow = replace(trace, seconds=STRETCH * trace.seconds)
    for name, order in STRETCHED.items():
        found[name] = hit_percents(slow, order)
    for name, percents in found.items():
        show(name, percents)
    return found


def halves(trace: Trace) -> dict[str, dict[str, list[float]]]:
    """By half and factor, stretched, with the touch interval: what an evictor would see."""
    middle = trace.requests // 2
    parts = {"first": trace.part(0, middle), "second": trace.part(middle, trace.requests)}
    found: dict[str, dict[str, list[float]]] = {}
    for half, part in parts.items():
        slow = replace(part, seconds=STRETCH * part.seconds)
        found[half] = {}
        for factor in FACTORS:
            order = aged(by_factor(factor))
            found[half][str(factor)] = hit_percents(slow, order)
            mean = float(np.mean(found[half][str(factor)][:-1]))
            show(f"{half} half, factor {factor}: mean {mean:.2f}", found[half][str(factor)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=Path, required=True, help="a folder with the traces")
    parser.add_argument("--only", default="", help="orders whose names hold this; saves nothing")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    files = [arguments.traces / f"{name}.jsonl" for name in TRACES]
    if missing := [file.name for file in files if not file.exists()]:
        raise SystemExit(f"nothing measured: {', '.join(missing)} not in that folder")
    result: dict[str, Any] = {
        "command": "python benchmarks/bench_policy.py --traces DIR",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "file_system": "none: simulated",
        "unit": "percent of the prompts' blocks that hit",
        "capacity_shares_of_the_footprint": SHARES,
        "freed_beyond_need_share": SLACK,
        "reused_factor": REUSED_FACTOR,
        "stretch": STRETCH,
        "traces": {},
    }
    if arguments.only:
        for file in files:
            print(file.stem)
            for name, order in ORDERS.items():
                if arguments.only in name:
                    show(name, hit_percents(read_trace(file), order))
        return
    for file in files:
        trace = read_trace(file)
        print(f"{file.stem}: {trace.requests} requests, {len(trace.blocks)} blocks, "
              f"{trace.distinct_blocks} distinct; capacities {SHARES}")  # fmt: skip
        result["traces"][file.stem] = {
            "requests": trace.requests,
            "blocks": len(trace.blocks),
            "distinct_blocks": trace.distinct_blocks,
            "orders": whole_trace(trace),
            "factors": halves(trace),
        }
    if not arguments.no_save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "policy.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
