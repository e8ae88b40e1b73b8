"""Many processes on one shelf, some of them killed and started again.

    python -m tests.stress.many DIRECTORY [DIRECTORY...] [--seconds 30] [--processes 8] [--seed 0]

With several directories, which are mounts of one file system, each process uses one of them. All
store, load, evict with the real evictor and scrub with the real scrubber. Ends with one line of
JSON: what was done and verified. Fails if a byte is wrong, if a process dies, hangs or leaks
descriptors or threads, or if the shelf cannot be brought to order afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from kvshelf import EngineConfig, Shelf, _native
from kvshelf.disk.deadline import CALL_THREAD
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.report import State
from kvshelf.upkeep.scrub.findings import Kind
from kvshelf.upkeep.scrub.scrubber import Scrubber
from kvshelf.upkeep.scrub.settings import ScrubSettings
from tests.stress.content import IDENTITY, make_content
from tests.stress.worker import COUNTERS, LIMITS, Worker, count, is_unlinked_nfs_file

FORK = multiprocessing.get_context("fork")
HANG_SECONDS = 90.0
EXIT_SECONDS = 10.0  # for a joined thread to be gone from /proc
SETTLE_SECONDS = 60.0  # for one evictor to bring a shelf below its limit that nobody uses
# What must have been tried; a slow machine gets so much longer until all was.
TRIED = ("bytes_verified", "evicted", "bytes_scrubbed")
TRIED_SECONDS = 120.0
KILL_EVERY_SECONDS = 1.5  # on average
# glibc opens no more for malloc or name services than this, once.
DESCRIPTORS_SLACK = 2


class Board:
    """Counters of all workers in shared memory: one row each, written by that worker alone."""

    def __init__(self, processes: int) -> None:
        self._memory = FORK.RawArray("d", processes * len(COUNTERS))
        self.rows = np.frombuffer(self._memory).reshape(processes, len(COUNTERS))
        self.stop: Any = FORK.RawValue("i", 0)

    def totals(self) -> dict[str, int]:
        return {
            name: int(self.rows[:, column].max() if name.endswith("_max") else total)
            for column, (name, total) in enumerate(
                zip(COUNTERS, self.rows.sum(axis=0), strict=True)
            )
            if name != "beat"
        }

    def untried(self) -> list[str]:
        totals = self.totals()
        return [name for name in TRIED if not totals[name]]


def other_threads() -> list[str]:
    """But those that wait for the lock of a namespace: on NFS 4 for a minute after the start."""
    waiting = {thread.native_id for thread in threading.enumerate() if thread.name == CALL_THREAD}
    names = []
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) not in {threading.get_native_id(), *waiting}:
            with contextlib.suppress(OSError):  # it has ended just now
                names.append((task / "comm").read_text().strip())
    return names


def threads_left() -> list[str]:
    """Names of the threads of this process beside the calling one.

    pthread_join() returns when the thread has let go of its memory, a moment before the kernel
    takes it out of /proc: long enough to be seen where many processes share few processors.
    """
    end = time.monotonic() + EXIT_SECONDS
    while (names := other_threads()) and time.monotonic() < end:
        time.sleep(0.01)
    return names


def work(root: Path, seed: int, content: Any, board: Board, number: int) -> None:
    """A worker's whole life; its exit status is 0 only if all was well."""
    try:
        before = count("fd")
        Worker(root, seed, content, board.rows[number]).run(board.stop)
        left = count("fd") - before
        if left > DESCRIPTORS_SLACK:
            raise AssertionError(f"{left} descriptors are left open")
        if left_over := threads_left():
            raise AssertionError(f"threads are left: {left_over}")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def file_system(path: Path) -> str:
    command = ["stat", "--file-system", "--format=%T", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Crowd:
    def __init__(self, roots: list[Path], processes: int, seed: int) -> None:
        self.roots, self.seed = roots, seed
        self.content = make_content()
        self.board = Board(processes)
        self.random = random.Random(seed)
        self.starts = self.kills = 0
        self.processes: list[BaseProcess] = [self.start(i) for i in range(processes)]

    def start(self, number: int) -> BaseProcess:
        self.starts += 1
        self.board.rows[number][COUNTERS.index("beat")] = time.monotonic()
        root = self.roots[number % len(self.roots)]
        arguments = (root, 1000 * self.seed + self.starts, self.content, self.board, number)
        process = FORK.Process(target=work, args=arguments)
        process.start()
        return process

    def check(self) -> None:
        """Raises AssertionError if a worker died or hangs."""
        for number, process in enumerate(self.processes):
            code = process.exitcode
            assert code is None, f"worker {number} died: {code}"
            quiet = time.monotonic() - self.board.rows[number][COUNTERS.index("beat")]
            assert quiet < HANG_SECONDS, f"worker {number} hangs for {quiet:.0f} s"

    def kill_one(self) -> None:
        """Any but the first, which lives to the end and would show a leak."""
        number = self.random.randrange(1, len(self.processes))
        victim = self.processes[number]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        # Killed by us, and not dead before of something else.
        assert victim.exitcode == -signal.SIGKILL, f"worker {number} died: {victim.exitcode}"
        self.kills += 1
        self.processes[number] = self.start(number)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        last = end + TRIED_SECONDS
        next_kill = time.monotonic() + KILL_EVERY_SECONDS
        try:
            while (now := time.monotonic()) < end or (now < last and self.board.untried()):
                time.sleep(0.05)
                self.check()
                if time.monotonic() >= next_kill and len(self.processes) > 1:
                    self.kill_one()
                    next_kill = time.monotonic() + self.random.expovariate(1 / KILL_EVERY_SECONDS)
            self.board.stop.value = 1
            for number, process in enumerate(self.processes):
                process.join(HANG_SECONDS)
                assert process.exitcode == 0, f"worker {number} ended with {process.exitcode}"
        finally:
            for process in self.processes:
                process.kill()
                process.join()


def bring_to_order(root: Path) -> dict[str, int]:
    """Evict and scrub the shelf that the crowd has left, alone: then nothing may be wrong with it.

    Raises:
        AssertionError: it is above its limit, holds a bad chunk or what a killed writer left.
    """
    evictor = Evictor(root, LIMITS)
    end = time.monotonic() + SETTLE_SECONDS
    while (report := evictor.step()).state is not State.IDLE:
        assert time.monotonic() < end, f"it stays above its limit: {report}"
    evictor.close()
    everything = ScrubSettings(megabytes_per_second=0, files_per_second=0, from_start=True)
    scrubber = Scrubber(root, everything)
    wrong = [each for each in scrubber.run() if each.kind is not Kind.ORPHAN]
    wrong = [each for each in wrong if not is_unlinked_nfs_file(each)]
    assert not wrong, f"a scrub found {wrong}"
    chunks = list((root / IDENTITY.folder).glob("r*/*/*.kv"))
    assert scrubber.totals.finished and scrubber.totals.files == len(chunks), scrubber.totals
    left = [
        path for folder in (root, root / IDENTITY.folder / "tmp") for path in folder.glob("*.tmp")
    ]
    assert not left, f"temp files of the killed are left: {left}"
    assert LIMITS.shelf_bytes is not None
    assert sum(path.stat().st_size for path in chunks) <= LIMITS.shelf_bytes
    return {"chunks_left": len(chunks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    roots = [directory / "shelf" for directory in options.directories]
    assert _native is not None  # loaded once, before the workers are forked
    # The first one makes the shelf, so that no mount believes for half a minute that there is none.
    Shelf(roots[0], IDENTITY, config=EngineConfig(lookup_threads=1)).close()
    crowd = Crowd(roots, options.processes, options.seed)
    crowd.run(options.seconds)
    totals = {**crowd.board.totals(), **bring_to_order(roots[0])}
    done = {
        "processes": options.processes,
        "seconds": options.seconds,
        "seed": options.seed,
        "file_system": file_system(roots[0]),
        "kills": crowd.kills,
        **totals,
    }
    sys.stdout.write(json.dumps(done) + "\n")
    assert totals["damaged"] == 0, "a chunk was damaged that nobody has damaged"
    untried = crowd.board.untried()
    assert not untried, f"not tried: {untried}"


if __name__ == "__main__":
    main()
