"""How long loads take while eviction runs at full speed, and what of it is the machine's.

    python benchmarks/bench_evict_load.py [--directory DIR] [--rounds 12] [--files 25000]
        [--kinds evict_4 ...]

One engine loads chunks of 16 MB from the page cache, one after the other. Beside it, taking turns:

- alone: nothing.
- spinner: a process that counts, with the policy SCHED_IDLE, and makes no system call.
- unlink: one process that calls unlink(2) on small files of the same file system, as rm does, with
  the priority that every program has, at the rate of evict_4 in the rounds before; unlink_idle the
  same with SCHED_IDLE.
- evict_tmpfs: an evictor of a shelf on another file system, in memory.
- evict_1, evict_2, evict_4: an evictor of the same file system, with at most so many threads, in a
  process of its own, without a limit of its rate. evict_4 is as users have it, and its shelf is the
  engine's own.

Medians and 99th percentiles of the loads of each kind, and their ratios to those of ``alone``.
Turns in which other programs ran are not counted; it fails if too few are left.
Writes benchmarks/results/evict-load.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench_engine import RESULTS, file_system, machine
from bench_evict import SIZE, Worker, make_by_two, make_files, make_tree
from kvshelf import Chunk, EngineConfig, FileStatus, Identity, Shelf, make_key

CHUNKS, BLOCK_BYTES = 16, 1 << 20
KEYS = [make_key(bytes([i + 1]) * 32, 0) for i in range(CHUNKS)]
THREADS = (1, 2, 4)
KINDS = (
    "alone",
    "spinner",
    "unlink",
    "unlink_idle",
    "evict_1",
    "evict_2",
    "evict_4",
    "evict_tmpfs",
)
SHARED = "evict_4"  # the kind whose shelf is the engine's own
TURN_SECONDS = 1.0  # of the kinds that do not end by themselves
QUIET_SECONDS, QUIET_TRIES = 0.25, 40  # to wait for others to rest, before a turn
SPARE = 100  # files that are left in the end: no limit is 0
OTHERS_MAX = 0.04  # of all processors: what other programs, the kernel's threads too, may use
BATCH = 64  # files between two looks at the clock
FORK = multiprocessing.get_context("fork")


@dataclass
class Kind:
    """One kind of company: how long each load took, and how fast files went meanwhile."""

    loads: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # files removed a second, each turn
    turns: int = 0

    def row(self, alone: Kind | None) -> dict[str, Any]:
        p50, p99 = (self.share(share) for share in (0.5, 0.99))
        row: dict[str, Any] = {"turns": self.turns, "loads": len(self.loads)}
        row |= {"p50_ms": round(1e3 * p50, 2), "p99_ms": round(1e3 * p99, 2)}
        if self.rates:
            row["removed_per_second"] = round(statistics.median(self.rates))
        if alone is not None:
            row["p50_ratio"] = round(p50 / alone.share(0.5), 3)
            row["p99_ratio"] = round(p99 / alone.share(0.99), 3)
        return row

    def share(self, share: float) -> float:
        return sorted(self.loads)[int(share * (len(self.loads) - 1))]


def load_until(shelf: Shelf, over: threading.Event) -> list[float]:
    took = []
    number = 0
    while not over.is_set():
        number += 1
        begin = time.perf_counter()
        answer = shelf.load([Chunk(KEYS[number % CHUNKS], range(16))])
        assert answer == [FileStatus.OK]
        took.append(time.perf_counter() - begin)
    return took


def load_beside(shelf: Shelf, work: Callable[[], float | None]) -> Kind:
    """Load while ``work`` runs; it returns files a second."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        running.add_done_callback(lambda _: over.set())
        loads = load_until(shelf, over)
        rate = running.result()
    return Kind(loads, [] if rate is None else [rate], 1)


def look_on(seconds: float) -> Kind:
    time.sleep(seconds)
    return Kind()


def rest() -> None:
    time.sleep(TURN_SECONDS)


def spin() -> None:
    end = time.perf_counter() + TURN_SECONDS
    while time.perf_counter() < end:
        sum(range(10_000))


def unlink(folder: str, count: int, rate: float) -> float:
    """Remove so many files beneath the folder."""
    begin = time.perf_counter()
    files = (each.path for leaf in os.scandir(folder) for each in os.scandir(leaf.path))
    for done, path in enumerate(islice(files, count)):
        if done % BATCH == 0:
            time.sleep(max(0.0, begin + done / rate - time.perf_counter()))
        os.unlink(path)  # noqa: PTH108 - nothing but the call
    return count / (time.perf_counter() - begin)


class Helper:
    """A process that does what it is told. Fork it before there is memory to load into: each page
    of that would be copied, at its first use in a load.
    """

    def __init__(self, *, is_idle: bool) -> None:
        self.pipe, theirs = FORK.Pipe()
        FORK.Process(target=self._run, args=(theirs, is_idle), daemon=True).start()

    @staticmethod
    def _run(pipe: Any, is_idle: bool) -> None:
        if is_idle:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        while True:
            work, args = pipe.recv()
            pipe.send(work(*args))

    def do(self, work: Callable[..., Any], *args: Any) -> Any:
        self.pipe.send((work, args))
        return self.pipe.recv()


class Company:
    """What runs beside the engine, with all files that it is to remove, made before.

    Making them in between would be slow: ext4 leaves inodes of removed files alone for a while.
    """

    def __init__(
        self, directory: Path, memory: Path, files: int, rounds: int, kinds: Sequence[str]
    ) -> None:
        self.files, self.left, self.rate = files, rounds, 20_000.0
        self.usual, self.idle = Helper(is_idle=False), Helper(is_idle=True)
        self.workers = {}
        for count in (*THREADS, 0):
            name = f"evict_{count}" if count else "evict_tmpfs"
            if name not in kinds:
                continue
            root = (directory if count else memory) / name
            make_tree(root, files * rounds + SPARE, make_files, time.time())
            self.workers[name] = Worker(root, threads=count or 4)
            self.workers[name].do()
        if not {"unlink", "unlink_idle"} & set(kinds):
            return
        self.plain = directory / "plain"
        for leaf in range(4096):
            (self.plain / f"{leaf:03x}").mkdir(parents=True)
        make_by_two([str(self.plain)], 0, 2 * files * rounds, make_files, time.time())

    def unlink(self, helper: Helper) -> float:
        return float(helper.do(unlink, str(self.plain), self.files, self.rate))

    def evict(self, name: str, more_bytes: int) -> float:
        """Remove the oldest files of its shelf."""
        answer = self.workers[name].do(bytes=(self.left * self.files + SPARE) * SIZE + more_bytes)
        return float(answer["removed"] / answer["seconds"])

    def close(self) -> None:
        for worker in self.workers.values():
            worker.end()


class Turns:
    """Loads beside each kind of company; a turn in which other programs ran is not counted."""

    def __init__(self, shelf: Shelf, company: Company, kinds: Sequence[str]) -> None:
        self.shelf, self.company = shelf, company
        self.kinds = {name: Kind() for name in kinds}
        self.ours = [psutil.Process(), *psutil.Process().children()]

    def others_seconds(self) -> float:
        """Processor time that was not this benchmark's."""
        ran = psutil.cpu_times()
        ours = [each.cpu_times() for each in self.ours]
        system = ran.user + ran.nice + ran.system + ran.irq + ran.softirq
        return float(system - sum(each.user + each.system for each in ours))

    def beside_others(self, work: Callable[[], Kind]) -> tuple[Kind, bool]:
        """What it found, and whether other programs ran meanwhile."""
        begin, others = time.perf_counter(), self.others_seconds()
        found = work()
        share = (self.others_seconds() - others) / (time.perf_counter() - begin)
        return found, share > OTHERS_MAX * (os.cpu_count() or 1)

    def turn(self, name: str, work: Callable[[], float | None]) -> None:
        if name not in self.kinds:
            return
        for _ in range(QUIET_TRIES):
            if not self.beside_others(partial(look_on, QUIET_SECONDS))[1]:
                break
        found, is_disturbed = self.beside_others(partial(load_beside, self.shelf, work))
        if is_disturbed:
            return
        kind = self.kinds[name]
        kind.loads += found.loads
        kind.rates += found.rates
        kind.turns += 1

    def round(self) -> None:
        company = self.company
        company.left -= 1
        self.turn("alone", rest)
        self.turn("spinner", partial(company.idle.do, spin))
        self.turn("unlink", partial(company.unlink, company.usual))
        self.turn("unlink_idle", partial(company.unlink, company.idle))
        self.turn("alone", rest)
        for name in company.workers:
            more_bytes = CHUNKS * (16 * BLOCK_BYTES + 4096) if name == SHARED else 0
            self.turn(name, partial(company.evict, name, more_bytes))
        company.rate = statistics.median(self.kinds[SHARED].rates or [company.rate])


def measure(
    directory: Path, memory: Path, files: int, rounds: int, kinds: Sequence[str]
) -> dict[str, Kind]:
    company = Company(directory, memory, files, rounds, kinds)
    blocks = np.random.default_rng(1).integers(0, 256, (16, BLOCK_BYTES), dtype=np.uint8)
    config = EngineConfig(io_threads=2, load_only_threads=0, lookup_threads=1)
    identity = Identity({"model": "bench"})
    with Shelf.of_arrays(directory / SHARED, identity, blocks, config=config) as shelf:
        shelf.store([Chunk(key, range(16)) for key in KEYS])
        load_beside(shelf, rest)  # warms up
        turns = Turns(shelf, company, kinds)
        for _ in range(rounds):
            turns.round()
    company.close()
    return turns.kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="default: a temp directory")
    parser.add_argument("--files", type=int, default=25_000, help="that are removed in a turn")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", choices=KINDS[1:], default=KINDS[1:])
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        places = [
            Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir=where, prefix="kvshelf-bench-"))
            )
            for where in (arguments.directory, "/dev/shm")
        ]
        wanted = [name for name in KINDS if name in ("alone", *arguments.kinds)]
        kinds = measure(*places, arguments.files, arguments.rounds, wanted)
        kind = file_system(places[0])
    turns = {name: k.turns for name, k in kinds.items()}
    if min(turns.values()) < arguments.rounds / 2:
        raise SystemExit(f"other programs ran beside it; turns that count: {turns}")
    row = {
        "command": " ".join(["python", "benchmarks/bench_evict_load.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "file_system": kind,
        "files": arguments.files,
        **{name: k.row(kinds["alone"] if name != "alone" else None) for name, k in kinds.items()},
    }
    if {"evict_4", "unlink"} <= kinds.keys():
        row["evict_4_to_unlink"] = round(
            kinds["evict_4"].share(0.99) / kinds["unlink"].share(0.99), 3
        )
    print(json.dumps(row, indent=1))
    if not arguments.no_save:
        (RESULTS / "evict-load.json").write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
