"""Two evictors on one shelf, as two hosts would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import State
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle

CODE = """
import sys
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import State
root, keep = sys.argv[1], int(sys.argv[2])
evictor = Evictor(root, Limits(shelf_bytes=keep, low_percent=100), files_per_second=8000)
evictor._limits = Limits(shelf_bytes=10**15)
while evictor.step().state is State.SCANNING:
    pass
print("ready", flush=True)
sys.stdin.readline()
evictor._limits = Limits(shelf_bytes=keep, low_percent=100)
removed = 0
while True:
    report = evictor.step()
    removed += report.removed.files
    if report.state is State.IDLE:
        break
print(removed, report.shelf.files, flush=True)
"""


@pytest.mark.slow
def test_two_at_once_remove_what_one_would(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(4000):
        shelf.add(1000 + i)
    line = [sys.executable, "-c", CODE, str(tmp_path), str(2700 * CHUNK_BYTES)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(line, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [tuple(map(int, process.communicate(timeout=60)[0].split())) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    gone = shelf.gone()
    assert sum(removed for removed, _ in results) == len(gone)
    # Half a percent of the volume is the allowance.
    assert 1300 <= len(gone) <= 1320, results
    assert len(gone & shelf.oldest(len(gone))) >= 0.99 * len(gone)


def test_who_finds_its_plan_removed_by_another_is_not_stuck(tmp_path: Path) -> None:
    """It reported so, and left a new need alone for 10 s."""
    shelf = ShelfMaker(tmp_path)
    for i in range(400):
        shelf.add(1000 + i)
    everything = Limits(shelf_bytes=10**15)
    one, other = (Evictor(tmp_path, everything, threads=16) for _ in range(2))
    for each in (one, other):
        settle(each)
    moment = 1e-9  # one piece of work a step
    seen = []
    for left in range(350, 0, -50):
        limits = Limits(shelf_bytes=left * CHUNK_BYTES, low_percent=100)
        one._limits = other._limits = limits
        while one._round is None:
            seen.append(one.step(moment).state)
        settle(other)
        while one._round is not None:
            seen.append(one.step(moment).state)
    assert set(seen) <= {State.SCANNING, State.EVICTING}
    one._limits = Limits(shelf_bytes=10 * CHUNK_BYTES, low_percent=100)
    assert settle(one).state is State.IDLE
    assert len(shelf.gone()) == 390


def test_who_was_stuck_reacts_at_once_after_a_rest(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(100):
        shelf.add(1000 + i)
    evictor = Evictor(tmp_path, Limits(shelf_bytes=50 * CHUNK_BYTES, low_percent=100))
    evictor._stuck_until[None] = float("inf")
    assert settle(evictor).state is State.STUCK
    evictor._limits = Limits(shelf_bytes=100 * CHUNK_BYTES)
    assert evictor.step().state is State.IDLE
    evictor._limits = Limits(shelf_bytes=50 * CHUNK_BYTES, low_percent=100)
    assert settle(evictor).state is State.IDLE
    assert len(shelf.gone()) == 50
