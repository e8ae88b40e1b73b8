"""Eviction on 500,000 files: precision, space freed beyond need, speed, memory, idle cost.

    python benchmarks/bench_evict.py [--directory DIR] [--files 500000]
    python benchmarks/bench_evict.py --names 10000000

One shelf of sparse files of 32 KiB whose times of use are spread over twelve days, on the file
system of DIR. In one run, on the same tree: find and plain unlink(2) in one thread, as limits of
the machine; scans; an idle evictor; one that removes 10 percent; two processes at once that remove
another 10; the time from crossing the mark. With ``--names`` a pass over so many names instead:
hard links to a few hundred files, because only inodes are missing to a shelf of that size.
Evictors run in processes of their own. Writes benchmarks/results/evict.json, evict-names.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench_engine import RESULTS, file_system, machine
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import State

SIZE = 32 << 10
SPAN_SECONDS = 12 * 86_400
NICE = 19  # as the evictor's threads: on a busy machine find and unlink get no more of it
LINKS_MAX = 60_000  # ext4 has 65,000


def names(first: int, count: int) -> Iterator[tuple[str, str]]:
    """(leaf folder, file name), as digests are."""
    for i in range(first, first + count):
        digits = hashlib.sha256(str(i).encode()).hexdigest()
        yield digits[:3], f"{digits}-g0.kv"


def use_time(i: int, now: float) -> float:
    return now - 60 - SPAN_SECONDS * random.Random(i).random()


def make_files(ranks: list[str], first: int, count: int, now: float) -> None:
    for i, (leaf, name) in enumerate(names(first, count), first):
        path = f"{ranks[0]}/{leaf}/{name}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o640)
        os.ftruncate(descriptor, SIZE)
        used = use_time(i, now)
        os.utime(descriptor, (used, used))
        os.close(descriptor)


def make_links(ranks: list[str], first: int, count: int, now: float) -> None:
    source = ""
    for i, (leaf, name) in enumerate(names(first, count), first):
        path = f"{ranks[0]}/{leaf}/{name}"
        if (i - first) % LINKS_MAX == 0:
            source = path
            Path(path).touch()
            os.truncate(path, SIZE)
            os.utime(path, (use_time(i, now),) * 2)
        else:
            os.link(source, path)


def make_tree(root: Path, count: int, maker: Any, now: float) -> Path:
    """A shelf of one rank."""
    rank = open_namespace(open_root(root), Identity({"model": "bench"})) / "r0"
    for leaf in range(4096):
        (rank / f"{leaf:03x}").mkdir(parents=True)
    make_by_two([str(rank)], 0, count, maker, now)
    return rank


def make_by_two(ranks: list[str], first: int, count: int, maker: Any, now: float) -> None:
    half = count // 2
    context = multiprocessing.get_context("fork")
    makers = [
        context.Process(target=maker, args=(ranks, begin, part, now))
        for begin, part in ((first, half), (first + half, count - half))
    ]
    for each in makers:
        each.start()
    for each in makers:
        each.join()
        assert each.exitcode == 0
    os.sync()


class Worker:
    """An evictor in a process of its own, told what to do by lines."""

    def __init__(self, root: Path, rate: float = 0, threads: int = 4) -> None:
        line = [sys.executable, __file__, "--worker", str(root), "--rate", str(rate)]
        line += ["--threads", str(threads)]
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **order: Any) -> None:
        assert self.process.stdin is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def do(self, **order: Any) -> dict[str, Any]:
        self.ask(**order)
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def work(root: str, rate: float, threads: int) -> None:
    """The other side of Worker."""
    evictor = Evictor(root, Limits(shelf_bytes=1 << 60), files_per_second=rate, threads=threads)
    for line in sys.stdin:
        order = json.loads(line)
        if "bytes" in order:
            evictor._limits = Limits(shelf_bytes=order["bytes"], low_percent=order.get("low", 100))
            evictor._refresh_times.now()
        if order.get("rescan"):
            evictor._scan_all = True
        told: list[float] = []
        if "until_removed" in order:
            evictor._on_removed = lambda *_, told=told: told.append(time.time())
        cpu, begin = time.process_time(), time.perf_counter()
        deadline = begin + order.get("seconds", 1e9)
        removed = looked = 0
        removing = 0.0
        while True:
            report = evictor.step(order.get("step", 1.0))
            removed += report.removed.files
            looked += report.looked_at
            if report.removed.files:
                removing += report.seconds
            resting = report.state not in (State.SCANNING, State.EVICTING)
            if resting and ("until_removed" not in order or removed) and "seconds" not in order:
                break
            if time.perf_counter() > deadline:
                break
            time.sleep(report.wait_seconds(1.0))
        seconds = time.perf_counter() - begin
        answer = {
            "seconds": seconds,
            "cpu_share": (time.process_time() - cpu) / seconds,
            "removed": removed,
            "removing_seconds": removing,
            "looked_at": looked,
            "first_removal": min(told, default=0.0),
            "ended": time.time(),
            "files": report.shelf.files,
            "rss_mb": most_resident_mb(),
        }
        print(json.dumps(answer), flush=True)


def run_find(root: Path) -> float:
    begin = time.perf_counter()
    done = subprocess.run(
        ["find", str(root), "-name", "*.kv", "-printf", "%A@\\n"],
        check=True,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.nice(NICE),
    )
    return done.stdout.count(b"\n") / (time.perf_counter() - begin)


def present(rank: Path) -> set[str]:
    return {entry.name for leaf in os.scandir(rank) for entry in os.scandir(leaf.path)}


def judge(order: list[str], before: set[str], after: set[str]) -> tuple[float, int]:
    """Precision of what went, and how much."""
    gone = before - after
    truly_next = set([name for name in order if name in before][: len(gone)])
    return len(gone & truly_next) / max(1, len(gone)), len(gone)


def measure(root: Path, count: int) -> dict[str, Any]:
    now = time.time()
    rank = make_tree(root, count, make_files, now)
    order = [
        name for _, name in sorted((use_time(i, now), n[1]) for i, n in enumerate(names(0, count)))
    ]
    result: dict[str, Any] = {"find_files_per_second": round(max(run_find(root) for _ in range(3)))}
    worker = Worker(root)
    worker.do()
    scans = []
    for _ in range(5):
        answer = worker.do(rescan=True)
        scans.append(answer["looked_at"] / answer["seconds"])
    result["scan_files_per_second"] = round(statistics.median(scans))
    result["scan_files_per_second_best"] = round(max(scans))
    quiet = worker.do(seconds=30)
    result["idle_cpu_percent"] = round(100 * quiet["cpu_share"], 3)
    tenth = count // 10
    before = present(rank)
    answer = worker.do(bytes=(count - tenth) * SIZE)
    after = present(rank)
    precision, gone = judge(order, before, after)
    result["one"] = {
        "precision": precision,
        "beyond_need_percent_of_volume": 100 * (gone - tenth) / count,
        "removed": gone,
        "removed_per_second": round(answer["removed"] / answer["removing_seconds"]),
        "seconds": round(answer["seconds"], 2),
    }
    other = Worker(root)
    other.do()
    before = after
    for each in (worker, other):
        each.ask(bytes=(count - 2 * tenth) * SIZE)
    answers = [each.answer() for each in (worker, other)]
    after = present(rank)
    precision, gone = judge(order, before, after)
    result["two"] = {
        "precision": precision,
        "beyond_need_percent_of_volume": 100 * (gone - tenth) / count,
        "removed": gone,
        "removed_by_each": [each["removed"] for each in answers],
        "seconds": round(max(each["seconds"] for each in answers), 2),
    }
    # Each at another moment between two looks.
    result["reaction_seconds"] = [
        react(worker, rank, count * 2 + k, wait_seconds=3 + k / 8) for k in range(8)
    ]
    result["reaction_after_another_evictor_seconds"] = []
    for k in range(8):
        other.do(bytes=(len(present(rank)) - tenth // 5) * SIZE)  # it removes from every folder
        row = react(worker, rank, count * 2 + 8 + k, wait_seconds=1 + k / 8)
        result["reaction_after_another_evictor_seconds"].append(row)
    other.end()
    result["rss_mb"] = round(worker.do()["rss_mb"], 1)
    worker.end()
    result["unlink_files_per_second"] = unlink_rate(rank, tenth)
    return result


def most_resident_mb() -> float:
    """The most of this program; ru_maxrss would count what its parent had when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def react(worker: Worker, rank: Path, first: int, wait_seconds: float) -> dict[str, float]:
    """A daemon that looks every second rests below its mark; then new files cross it."""
    files = len(present(rank))
    worker.ask(bytes=(files + 10) * SIZE, low=99.9, until_removed=True)
    time.sleep(wait_seconds)
    make_files([str(rank)], first * 1000, 100, time.time())
    crossed = time.time()
    answer = worker.answer()
    return {
        "first_removal": round(answer["first_removal"] - crossed, 2),
        "below_the_low_mark": round(answer["ended"] - crossed, 2),
    }


def unlink_rate(rank: Path, count: int) -> int:
    paths = [f"{leaf.path}/{e.name}" for leaf in os.scandir(rank) for e in os.scandir(leaf.path)]
    os.nice(NICE)  # the last thing that is measured
    begin = time.perf_counter()
    for path in paths[:count]:
        os.unlink(path)  # noqa: PTH108 - nothing but the call
    return round(len(paths[:count]) / (time.perf_counter() - begin))


def measure_names(root: Path, count: int) -> dict[str, Any]:
    make_tree(root, count, make_links, time.time())
    worker = Worker(root)
    first = worker.do()
    again = worker.do(rescan=True)
    quiet = worker.do(bytes=1 << 60, seconds=1)
    result = {
        "names": count,
        "first_pass_seconds": round(first["seconds"], 1),
        "pass_seconds": round(again["seconds"], 1),
        "files_per_second": round(again["looked_at"] / again["seconds"]),
        "unchanged_files_looked_at": quiet["looked_at"],
        "rss_mb": round(again["rss_mb"], 1),
    }
    worker.end()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, default=None, help="default: a temp directory")
    parser.add_argument("--files", type=int, default=500_000)
    parser.add_argument("--names", type=int, help="a pass over so many names instead")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.rate, arguments.threads)
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        root = Path(name) / "shelf"
        kind = file_system(Path(name))
        if arguments.names:
            row = measure_names(root, arguments.names)
        else:
            row = measure(root, arguments.files)
    result = {
        "command": " ".join(["python", "benchmarks/bench_evict.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "file_system": kind,
        "files": arguments.names or arguments.files,
        **row,
    }
    print(json.dumps(result, indent=2))
    if not arguments.no_save:
        RESULTS.mkdir(exist_ok=True)
        file = "evict-names.json" if arguments.names else "evict.json"
        (RESULTS / file).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
