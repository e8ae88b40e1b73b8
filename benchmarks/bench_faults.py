"""What an engine loses when its shelf's storage hangs, is slow or is full.

    python benchmarks/bench_faults.py CASE [--seconds-scale 1.0] [--out FILE] [--directory DIR]

Each case runs the same requests through a real vLLM CPU engine with a tiny model, without kvshelf
(arm ``none``) and with it at its default settings on a file system with faults on demand (arm
``kvshelf``). Needs root, /dev/fuse and libfuse 3. The cases:

    hung         20 s of stores and hits, 60 s in which no call to the storage returns (its server
                 is stopped), 30 s more
    slow-writes  25 s of stores only, to storage that takes a third of the bytes made; three times
                 an arm, in turn
    full         stores only: 15 s, then 60 s of ENOSPC, 20 s more
    slow-reads   40 stored prompts one at a time, from storage that takes five times as long to
                 read one as the engine to compute it
    all          one after the other

The engine has one core and the file server another, so that arms differ by kvshelf alone. vLLM's
own cache holds 40 requests of a pool of 150 prompts: other hits come from the shelf. Prints one
line a figure and replaces the case's part of benchmarks/results/faults.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.harness.engines import (
    CHUNK_TOKENS,
    EngineFailedError,
)
from tests.harness.faulty_mount import FaultyMount, why_not

from bench_engine import file_system, machine
from faults_load import (
    ENGINE_CORE,
    IN_FLIGHT,
    PROMPT_TOKENS,
    SERVER_CORE,
    Run,
    verdict,
)
from faults_site import POOL, Site, chunk_files

PROMPTS_ONE_BY_ONE = 40
FULL = {"write": "ENOSPC", "create": "ENOSPC", "mkdir": "ENOSPC"}


@dataclass
class Case:
    """Figures with what they are to reach, and what they came from."""

    runs: list[Run]
    figures: dict[str, float | None] = field(default_factory=dict)
    goals: dict[str, str] = field(default_factory=dict)

    def figure(self, name: str, value: float | None, goal: str | None = None) -> None:
        self.figures[name] = None if value is None else round(value, 4)
        if goal is not None:
            self.goals[name] = goal
        shown = "never" if value is None else f"{value:.3f}"
        print(f"{name:58s} {shown:>10s}{f'   to be {goal}' if goal else ''}", flush=True)

    def rates(self, windows: dict[str, tuple[float, float]], goals: dict[str, str]) -> None:
        for name, window in windows.items():
            medians = {
                arm: statistics.median(run.rate(*window) for run in self.runs if run.arm == arm)
                for arm in ("none", "kvshelf")
            }
            for arm, rate in medians.items():
                self.figure(f"{name}: requests/s, {arm}", rate)
                each = [round(run.rate(*window), 2) for run in self.runs if run.arm == arm]
                if len(each) > 1:
                    print(f"  of {each}")
            ratio = medians["kvshelf"] / medians["none"] if medians["none"] else None
            self.figure(f"{name}: ratio", ratio, goals.get(name))

    def answers(self) -> None:
        """Every answer against the first that an engine without kvshelf gave to the prompt."""
        truth: dict[int, dict[str, Any]] = {}
        for run in self.runs:
            if run.arm == "none":
                for each in run.requests:
                    truth.setdefault(each["prompt"], each)
        verdicts: dict[str, list[str]] = {"none": [], "kvshelf": []}
        for run in self.runs:
            for each in run.requests:
                if each["prompt"] in truth:
                    verdicts[run.arm].append(verdict(each, truth[each["prompt"]]))
        self.figure("answers compared", len(verdicts["kvshelf"]))
        self.figure("wrong answers", verdicts["kvshelf"].count("wrong"), "0")
        self.figure("wrong answers of arm none itself", verdicts["none"].count("wrong"), "0")
        self.figure("answers that differ by a tie", verdicts["kvshelf"].count("tie"))
        self.figure("requests that did not run to their end", sum(bool(r.error) for r in self.runs))


def hung(site: Site) -> Case:
    warm, end, after = 20 * site.scale, 80 * site.scale, 110 * site.scale
    script = [(warm, FaultyMount.freeze), (end, FaultyMount.thaw)]
    case = Case([site.stream(arm, after, POOL, script) for arm in ("none", "kvshelf")])
    windows = {
        "before": (warm / 2, warm),
        "hung": (warm + 12 * site.scale, end),
        "after": (end, after),
    }
    case.rates(windows, {"hung": ">= 0.95"})
    for run in case.runs:
        case.figure(f"longest request while hung, s, {run.arm}", run.slowest(warm, end))
    run = case.runs[-1]
    # Counted up to the end of the hang; one that ends later is a load that works again.
    loaded = [at - end for at, _ in run.loads if at > end]
    case.figure("after the hang, s until chunks are loaded", min(loaded, default=None), "<= 10")
    hits = [each["first"] - end for each in run.from_shelf() if each["first"] > end]
    case.figure("after the hang, s until a request's hit", min(hits, default=None))
    return case


def slow_writes(site: Site) -> Case:
    seconds = 25 * site.scale
    first = site.stream("none", seconds, 0)
    made = first.rate(0, seconds) * site.prompt_bytes / 1e6
    limit = made / 3

    def slow(mount: FaultyMount) -> None:
        mount.set(bandwidth_mb_s=limit)

    rest = ("kvshelf", "none", "kvshelf", "none", "kvshelf")
    runs = [first, *(site.stream(arm, seconds, 0, [(0.0, slow)]) for arm in rest)]
    case = Case(runs)
    case.figure("KV made by arm none, MB/s", made)
    case.figure("storage takes, MB/s", limit)
    case.rates({"all": (0, seconds), "second half": (seconds / 2, seconds)}, {"all": ">= 0.97"})
    for run in runs:
        case.figure(f"longest request, s, {run.arm}", run.slowest(0, seconds))
    return case


def full(site: Site) -> Case:
    begin, end, after = 15 * site.scale, 75 * site.scale, 95 * site.scale
    found: list[float] = []
    made_when_full: list[int] = []
    before: set[str] = set()

    def fill(mount: FaultyMount) -> None:
        mount.set(**FULL)
        time.sleep(0.5)  # writes that the server had begun
        before.update(chunk_files(mount))

    def clear(mount: FaultyMount) -> None:
        known = chunk_files(mount)
        made_when_full.append(len(known - before))
        mount.set()
        cleared = time.monotonic()
        while not found and time.monotonic() < cleared + after - end:
            if chunk_files(mount) - known:
                found.append(time.monotonic() - cleared)
            time.sleep(0.1)

    script = [(begin, fill), (end, clear)]
    case = Case([site.stream(arm, after, 0, script) for arm in ("none", "kvshelf")])
    windows = {"before": (begin / 3, begin), "full": (begin, end), "after": (end, after)}
    case.rates(windows, {"full": ">= 0.97"})
    for run in case.runs:
        case.figure(f"longest request while full, s, {run.arm}", run.slowest(begin, end))
    case.figure("chunk files made while full", sum(made_when_full))
    case.figure("after it, s until a chunk is stored", min(found, default=None), "<= 10")
    return case


def slow_reads(site: Site) -> Case:
    count = max(5, round(PROMPTS_ONE_BY_ONE * site.scale))
    chance, plain = site.one_by_one("none", count, None)
    compute = statistics.median(plain.first_tokens().values())
    limit = site.prompt_bytes / 1e6 / (5 * compute)
    (shelf,) = site.one_by_one("kvshelf", count, limit)
    case = Case([chance, plain, shelf])
    case.figure("computing a prompt, ms", 1e3 * compute)
    case.figure("storage gives, MB/s", limit)
    case.figure("so loading a prompt's chunks takes, ms", 5e3 * compute)
    for name, run, goal in (("none, again", chance, None), ("kvshelf", shelf, "<= 1.1")):
        mine, reference = run.first_tokens(), plain.first_tokens()
        ratios = [mine[index] / reference[index] for index in reference if index in mine]
        median = statistics.median(ratios) if ratios else None
        case.figure(f"time to first token against none: median, {name}", median, goal)
        case.figure(f"  worst, {name}", max(ratios, default=None))
        case.figure(f"  prompts of {count} above 1.1, {name}", sum(r > 1.1 for r in ratios))
    case.figure("  prompts answered from the shelf", sum(r["cached"] > 0 for r in shelf.requests))
    return case


CASES: dict[str, Callable[[Site], Case]] = {
    "hung": hung,
    "slow-writes": slow_writes,
    "full": full,
    "slow-reads": slow_reads,
}


def measure(name: str, directory: Path | None, scale: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=directory, prefix="kvshelf-faults-") as folder:
        kind = file_system(Path(folder))
        site = Site(Path(folder), scale)
        case = CASES[name](site)
    case.answers()
    return {
        "command": " ".join(["python", "benchmarks/bench_faults.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine() | {"engine_core": ENGINE_CORE, "file_server_core": SERVER_CORE},
        "file_system": f"faultfs (FUSE) on {kind}",
        "seconds_scale": scale,
        "requests_in_flight": IN_FLIGHT,
        "prompt_tokens": PROMPT_TOKENS,
        "chunk_tokens": CHUNK_TOKENS,
        "kv_bytes_of_a_prompt": site.prompt_bytes,
        "figures": case.figures,
        "goals": case.goals,
        "runs": [run.summary(5 * scale) for run in case.runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", choices=[*CASES, "all"])
    parser.add_argument("--seconds-scale", type=float, default=1.0, help="of all durations")
    parser.add_argument("--directory", type=Path, help="for the storage; default: a temp directory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/faults.json")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(f"bench_faults: {reason}")
    # As an exception, so that no stopped server and no engine outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench_faults: terminated"))
    os.sched_setaffinity(0, {SERVER_CORE})
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    failed = []
    for name in CASES if arguments.case == "all" else [arguments.case]:
        print(f"--- {name}", flush=True)
        try:
            results[name] = measure(name, arguments.directory, arguments.seconds_scale)
        except (EngineFailedError, OSError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    if failed:
        sys.exit(f"bench_faults: no figures of {', '.join(failed)}")


if __name__ == "__main__":
    main()
