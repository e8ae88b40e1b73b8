"""Time until a request's chunks are in host memory: KvshelfTier against vLLM's own `fs` tier.

    python benchmarks/bench_tier.py [--directory DIR] [--fs 0.33=PATH] [--rounds 7] [--out FILE]

Both tiers are driven as vLLM's TieringOffloadingManager drives them, without an engine, on host
memory of the kind that it gives them (a shared anonymous mapping), with the threads that each has
by itself. ``--fs`` adds the `fs` tier of another vLLM, whose Python files lie under PATH. Each tier
is a process of its own; they take turns in every round, so that a drift of the machine hits all.

Both read through the page cache, where the files are. vLLM's tier reads with O_DIRECT on file
systems that have it, so it is told that there is none; ``--as-shipped`` leaves it alone.

Prints medians and ratios and writes benchmarks/results/tier.json.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
POLL_SECONDS = 0.0001  # of a step that only waits; the same for all
OURS, THEIRS = "KvshelfTier", "fs"
# Bytes of a chunk: 256 and 16 tokens of an 8B model.
SIZES = {"32 MiB": 32 << 20, "2 MiB": 2 << 20}
ONE_REQUEST = (64, 8, 1)  # chunks
REQUESTS, CHUNKS_EACH = 24, 8


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Driver:
    """A tier over host memory: the first half of the rows is stored, the second loaded into."""

    def __init__(self, kind: str, root: Path, chunk_bytes: int, *, as_shipped: bool) -> None:
        from tests.vllm.jobs import tier_config, tier_spec
        from vllm.v1.kv_offload.base import LookupResult, ScheduleEndContext
        from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

        self.retry = LookupResult.RETRY
        self.step_end = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())
        self.half = REQUESTS * CHUNKS_EACH
        self.bytes = chunk_bytes
        self.root = root
        memory = mmap.mmap(-1, 2 * self.half * chunk_bytes)
        self.rows = np.frombuffer(memory, dtype=np.uint8).reshape(2 * self.half, chunk_bytes)
        self.rows[: self.half] = np.random.default_rng(3).integers(0, 256, chunk_bytes, np.uint8)
        self.rows[: self.half, :8] = np.arange(self.half, dtype="<u8").view(np.uint8).reshape(-1, 8)
        self.rows[self.half :] = 0
        entry: dict[str, Any] = {"type": kind, "root_dir": str(root)}
        config = tier_config(extra_config={}) if kind == THEIRS else tier_config()
        if kind == OURS:
            from kvshelf.vllm import plugin

            plugin.register()
            entry |= {"module_path": "kvshelf.vllm.tier", "evict": False}
        elif not as_shipped:
            from vllm.v1.kv_offload.tiering.fs import io

            io.O_DIRECT = 0
        view = memoryview(self.rows)
        self.tier = SecondaryTierFactory.create_secondary_tier(entry, view, tier_spec(config))
        self.jobs = 0

    def submit(self, kind: str, first_key: int, rows: range) -> None:
        from tests.vllm.jobs import key, transfer_job

        self.jobs += 1
        keys = [key(first_key + i) for i in range(len(rows))]
        job = transfer_job(self.jobs, keys, list(rows), is_load=kind == "load")
        getattr(self.tier, f"submit_{kind}")(job)

    def await_jobs(self, count: int) -> None:
        while count:
            for result in self.tier.get_finished_jobs():
                assert result.success, result
                count -= 1
            self.tier.on_schedule_end(self.step_end)
            time.sleep(POLL_SECONDS)

    def timed(self, act: Callable[[], None]) -> tuple[float, float]:
        """Seconds, and seconds of processor time."""
        used, begin = processor_seconds(), time.perf_counter()
        act()
        return time.perf_counter() - begin, processor_seconds() - used

    def look_up(self, name: str, keys: list[bytes]) -> None:
        from vllm.v1.kv_offload.base import ReqContext

        context = ReqContext(req_id=name)
        while self.retry in [self.tier.lookup(each, context) for each in keys]:
            self.tier.on_schedule_end(self.step_end)
            time.sleep(POLL_SECONDS)
        self.tier.on_request_finished(context)

    def load(self, requests: int, chunks: int) -> tuple[float, float]:
        def act() -> None:
            for i in range(requests):
                first = i * chunks
                self.submit("load", first, range(self.half + first, self.half + first + chunks))
            self.await_jobs(requests)

        return self.timed(act)

    def store(self, first_key: int, chunks: int) -> tuple[float, float]:
        def act() -> None:
            self.submit("store", first_key, range(chunks))
            self.await_jobs(1)

        return self.timed(act)

    def check(self) -> None:
        assert (self.rows[: self.half] == self.rows[self.half :]).all(), "a wrong byte"


def measure(driver: Driver, number: int) -> dict[str, list[float]]:
    """One round: seconds and processor seconds of each case."""
    from tests.vllm.jobs import key

    found: dict[str, list[float]] = {}
    if number == 0:
        driver.store(0, driver.half)
        driver.load(REQUESTS, CHUNKS_EACH)
        driver.check()
    for chunks in ONE_REQUEST:
        found[f"load: 1 request of {chunks} chunks"] = [*driver.load(1, chunks), chunks]
    total = REQUESTS * CHUNKS_EACH
    found[f"load: {REQUESTS} requests of {CHUNKS_EACH} chunks"] = [
        *driver.load(REQUESTS, CHUNKS_EACH),
        total,
    ]
    first = 10_000 * (number + 1)
    keys = [key(first + i) for i in range(64)]
    looked = driver.timed(lambda: driver.look_up(f"{number}", keys))
    found["lookup: 64 unknown keys"] = [*looked, 0]
    before = set(driver.root.rglob("*"))
    found["store: 1 request of 64 chunks"] = [*driver.store(first, 64), 64]
    for path in set(driver.root.rglob("*")) - before:
        if path.is_file():
            path.unlink()
    return found


def child(arguments: argparse.Namespace) -> None:
    """Answers each line of standard input with a round's figures."""
    sys.path.insert(0, str(HERE.parent))
    import vllm

    driver = Driver(
        arguments.child,
        arguments.directory,
        SIZES[arguments.size],
        as_shipped=arguments.as_shipped,
    )
    files = sys.modules.get("vllm.v1.kv_offload.tiering.fs.io")
    native = bool(getattr(files, "_HAS_FSIO_C", False))  # since 0.33
    print(json.dumps({"version": vllm.__version__, "native_file_io": native}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(driver, int(line))), flush=True)
    driver.tier.shutdown()


class Arm:
    """One tier in a process of its own."""

    def __init__(self, name: str, size: str, directory: Path, options: argparse.Namespace) -> None:
        kind = OURS if name == OURS else THEIRS
        command = [sys.executable, __file__, "--child", kind, "--size", size]
        command += ["--directory", str(directory / name)]
        if options.as_shipped:
            command.append("--as-shipped")
        path = dict(each.split("=", 1) for each in options.fs).get(name.removeprefix("fs "))
        paths = [each for each in (path, os.environ.get("PYTHONPATH")) if each]
        env = {**os.environ, "PYTHONPATH": ":".join(paths), "VLLM_NO_USAGE_STATS": "1"}
        self.name = name
        self.log = (directory / f"{name}.log").open("w+")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=env, stdin=pipe, stdout=pipe, stderr=self.log, text=True, bufsize=1
        )
        self.version = self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # vLLM writes its log there, too
                return json.loads(line)
        self.log.seek(0)
        raise RuntimeError(f"{self.name} ended: {self.log.read()[-3000:]}")

    def round(self, number: int) -> dict[str, list[float]]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        found: dict[str, list[float]] = self.answer()
        return found

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.log.close()


def table(rounds: dict[str, list[dict[str, list[float]]]], chunk_bytes: int) -> dict[str, Any]:
    """Of each case and tier: medians, and ours against each of the others in the same round."""
    rows: dict[str, Any] = {}
    for case in rounds[OURS][0]:
        row: dict[str, Any] = {}
        for name, found in rounds.items():
            seconds, used, chunks = zip(*(each[case] for each in found), strict=True)
            entry: dict[str, float] = {"ms": round(1e3 * statistics.median(seconds), 2)}
            if gigabytes := chunks[0] * chunk_bytes / 1e9:
                entry["GB_per_s"] = round(gigabytes / statistics.median(seconds), 1)
                entry["cpu_s_per_GB"] = round(statistics.median(used) / gigabytes, 4)
            if name != OURS:
                pairs = [(a[case], b[case]) for a, b in zip(rounds[OURS], found, strict=True)]
                entry["ours_to_it"] = round(statistics.median(a[0] / b[0] for a, b in pairs), 3)
                entry["cpu_ours_to_it"] = round(statistics.median(a[1] / b[1] for a, b in pairs), 3)
            row[name] = entry
        rows[case] = row
    return rows


def compare(size: str, options: argparse.Namespace) -> dict[str, Any]:
    names = [OURS, "fs", *(f"fs {each.split('=')[0]}" for each in options.fs)]
    folder = Path(tempfile.mkdtemp(dir=options.directory, prefix="kvshelf-bench-"))
    arms: list[Arm] = []
    try:
        arms = [Arm(name, size, folder, options) for name in names]
        rounds: dict[str, list[dict[str, list[float]]]] = {arm.name: [] for arm in arms}
        for number in range(options.rounds + 1):
            for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                found = arm.round(number)
                if number:  # the first fills the caches
                    rounds[arm.name].append(found)
        versions = {arm.name: arm.version for arm in arms}
        for arm in arms:
            arm.end()
        return {"vllm": versions, "cases": table(rounds, SIZES[size])}
    finally:
        for arm in arms:
            arm.process.kill()
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="default: a temp directory")
    parser.add_argument("--fs", action="append", default=[], help="NAME=PATH of another vLLM")
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--as-shipped", action="store_true", help="leave O_DIRECT on")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tier.json")
    parser.add_argument("--child", choices=(OURS, THEIRS))
    options = parser.parse_args()
    if options.child:
        (options.size,) = options.size
        child(options)
        return
    from bench_engine import machine

    sizes = options.size or list(SIZES)
    row = {
        "command": "python benchmarks/bench_tier.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "as_shipped": options.as_shipped,
        "sizes": {size: compare(size, options) for size in sizes},
    }
    print(json.dumps(row["sizes"], indent=1))
    options.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
