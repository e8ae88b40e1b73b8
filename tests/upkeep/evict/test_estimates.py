"""Eviction by what is not surely known: samples of a first scan, late file systems, odd names."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.refresh import Sampling
from kvshelf.upkeep.evict.report import State
from kvshelf.upkeep.evict.watch import RootWatch
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle


@pytest.mark.slow
@pytest.mark.parametrize("step_seconds", [0.05, 0.2, 1.0])
def test_a_first_scan_of_many_steps_removes_no_more_than_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    """What a removal has seen of all folders is no sample."""
    monkeypatch.setattr("kvshelf.upkeep.evict.refresh.Sampling.AFTER_SECONDS", 0.0)
    shelf = ShelfMaker(tmp_path)
    for i in range(4000):
        shelf.add(1000 + i)
    limits = Limits(shelf_bytes=3600 * CHUNK_BYTES, low_percent=90)
    evictor = Evictor(tmp_path, limits, files_per_second=4000)
    sampled = False
    report = evictor.step(step_seconds)
    while report.state in (State.SCANNING, State.EVICTING):
        sampled = sampled or bool(report.removed and not evictor.phase.is_known)
        if evictor._sweep.coverage() >= Sampling.COVERAGE:  # of a smaller sample nothing is removed
            assert report.shelf.files < 5000
        report = evictor.step(step_seconds)
    assert sampled or step_seconds == 1.0
    left = len(list(tmp_path.rglob("*.kv")))
    # The low mark is 3,240; a sample of a sixteenth scatters by some percent of all.
    assert 2900 < left <= 3600 and left == report.shelf.files


def test_a_name_that_is_no_utf8_is_told_and_harms_nothing(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(20):
        shelf.add(1000 + i)
    strange = os.fsencode(shelf.chunks[0].path.parent) + b"/\xff\xfe.kv"
    Path(os.fsdecode(strange)).write_text("somebody's")
    report = settle(Evictor(tmp_path, Limits(shelf_bytes=10 * CHUNK_BYTES, low_percent=100)))
    assert shelf.gone() == shelf.oldest(10)
    assert report.foreign == 1 and os.fsencode(report.foreign_examples[0]).endswith(b"/\xff\xfe.kv")


@pytest.mark.parametrize("year_2350", [12_000_000_000])
def test_a_last_use_that_no_clock_can_say_is_left_alone(tmp_path: Path, year_2350: int) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(20):
        shelf.add(1000 + i)
    path = shelf.chunks[0].path
    os.utime(path, (year_2350, path.stat().st_mtime))
    if path.stat().st_atime != year_2350:
        pytest.skip("this file system ends sooner")
    settle(Evictor(tmp_path, Limits(shelf_bytes=10 * CHUNK_BYTES, low_percent=100)))
    assert path.exists() and len(shelf.gone()) == 10


@pytest.mark.slow
def test_a_floor_that_rises_in_the_middle_leaves_nothing_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system whose size is what is used and free, as ZFS and NFS tell it."""
    shelf = ShelfMaker(tmp_path)
    for i in range(300):
        shelf.add(100_000 + i)
    total = [1000]
    monkeypatch.setattr(
        RootWatch,
        "volume",
        lambda _: Volume(
            (650 + len(list(tmp_path.rglob("*.kv")))) * CHUNK_BYTES, total[0] * CHUNK_BYTES
        ),
    )
    limits = Limits(volume_percent=50.0, keep_percent=20.0)
    evictor = Evictor(tmp_path, limits, files_per_second=500)
    while not (evictor._round is not None and len(list(tmp_path.rglob("*.kv"))) < 250):
        evictor.step(0.05)
    total[0] = 1500  # now 300 are to be kept
    assert evictor.step(0.2).state is State.STUCK
    for i in range(400):
        shelf.add(50_000 + i)
    for _ in range(5):
        evictor._refresh_times.now()
        evictor._stuck_until.clear()
        settle(evictor)
    assert len(list(tmp_path.rglob("*.kv"))) == 300


def test_a_namespace_that_cannot_shrink_does_not_keep_the_shelf_from_it(tmp_path: Path) -> None:
    """Its folders are immutable (chattr(1))."""
    shelf = ShelfMaker(tmp_path, "stays", "old")
    for i in range(50):
        shelf.add(100 + i, name_space=0)
        shelf.add(1000 + i, name_space=1)
    folders = {chunk.path.parent for chunk in shelf.chunks[::2]}
    done = subprocess.run(["chattr", "+i", *folders], check=False, capture_output=True)
    try:
        if done.returncode:
            pytest.skip(f"no immutable folders here: {done.stderr.decode().strip()}")
        _a_namespace_that_cannot_shrink(tmp_path, shelf)
    finally:
        subprocess.run(["chattr", "-i", *folders], check=False, capture_output=True)


def _a_namespace_that_cannot_shrink(tmp_path: Path, shelf: ShelfMaker) -> None:
    limits = Limits(
        shelf_bytes=80 * CHUNK_BYTES,
        namespace_bytes_of={"stays": 10 * CHUNK_BYTES},
        low_percent=100,
    )
    evictor = Evictor(tmp_path, limits)
    for _ in range(10):
        settle(evictor)
    left = [len(list((tmp_path / folder).rglob("*.kv"))) for folder in shelf.folders]
    assert left[0] == 50 and left[1] < 50
    # What is exceeded and cannot shrink is no reason to look all the time.
    report = evictor.step()
    assert report.state is State.STUCK and report.wait_seconds(60) == 60


@pytest.mark.slow
def test_what_a_sample_removed_counts_before_statvfs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvshelf.upkeep.evict.refresh.Sampling.AFTER_SECONDS", 0.0)
    shelf = ShelfMaker(tmp_path)
    for i in range(2000):
        shelf.add(1000 + i)
    history: list[tuple[float, int]] = []

    def sees(_: RootWatch) -> Volume:
        """What was used 2 s ago."""
        now = time.monotonic()
        history.append((now, len(list(tmp_path.rglob("*.kv")))))
        used = next((count for at, count in reversed(history) if at < now - 2), 2000)
        return Volume(used * CHUNK_BYTES, 2000 * CHUNK_BYTES)

    monkeypatch.setattr(RootWatch, "volume", sees)
    limits = Limits(volume_percent=90.0, low_percent=95, keep_percent=0)
    evictor = Evictor(tmp_path, limits, files_per_second=3000)
    report = evictor.step(0.05)
    while report.state in (State.SCANNING, State.EVICTING):
        report = evictor.step(0.05)
    left = len(list(tmp_path.rglob("*.kv")))
    assert 1600 < left <= 1800  # 1,710 is the low mark


def test_a_lease_that_was_lost_leaves_nothing_under_way(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(200):
        shelf.add(1000 + i)
    limits = Limits(shelf_bytes=190 * CHUNK_BYTES, low_percent=50)
    evictor = Evictor(tmp_path, limits, files_per_second=2000)
    while not evictor.phase.is_evicting:
        evictor.step(0.02)
    evictor.leave()
    for chunk in shelf.chunks[:20]:
        chunk.path.unlink(missing_ok=True)  # by another evictor
    before = len(list(tmp_path.rglob("*.kv")))
    if before > 190:
        pytest.skip("it had not begun")
    settle(evictor)
    assert len(list(tmp_path.rglob("*.kv"))) == before
