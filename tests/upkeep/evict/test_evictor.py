"""The evictor on real files: what goes, what stays, and how much."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf.disk.keys import ChunkKey
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Amount, Limits
from kvshelf.upkeep.evict.native import Sweep
from kvshelf.upkeep.evict.refresh import Use
from kvshelf.upkeep.evict.report import State
from kvshelf.upkeep.evict.watch import RootWatch
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle

DAY = 86_400.0


def to_keep(chunks: int, low_percent: float = 100) -> Limits:
    return Limits(shelf_bytes=chunks * CHUNK_BYTES, low_percent=low_percent)


@pytest.mark.parametrize("span_seconds", [10.0, 30 * DAY])
@pytest.mark.parametrize("go", [1, 37, 950])
def test_the_oldest_go_and_no_more_than_needed(
    tmp_path: Path, span_seconds: float, go: int
) -> None:
    shelf = ShelfMaker(tmp_path)
    draw = random.Random(go)
    for i in range(1000):
        age = span_seconds * draw.random() + 5
        shelf.add(age, rank=i % 2, reused=i % 3 == 0)
    evictor = Evictor(tmp_path, to_keep(1000 - go), policy=lambda age, reused, idle: age)
    report = settle(evictor)
    assert report.state is State.IDLE and not report.needs
    assert shelf.gone() == shelf.oldest(go)
    assert report.removed == Amount(go, go * CHUNK_BYTES)
    assert report.shelf == Amount(1000 - go, (1000 - go) * CHUNK_BYTES)


def test_with_all_times_equal_no_more_than_needed_goes(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for _ in range(300):
        shelf.add(1000)
    settle(Evictor(tmp_path, to_keep(200)))
    assert len(shelf.gone()) == 100


@pytest.mark.parametrize("ahead_seconds", [0.0, 1000.0])
def test_when_everything_is_hot_the_coldest_goes(tmp_path: Path, ahead_seconds: float) -> None:
    """Used just now, or by clocks that are ahead of ours."""
    shelf = ShelfMaker(tmp_path)
    for i in range(200):
        shelf.add(-ahead_seconds - 0.001 * i)
    settle(Evictor(tmp_path, to_keep(150)))
    assert shelf.gone() == shelf.oldest(50)


def test_chunks_used_after_the_scan_stay(tmp_path: Path) -> None:
    """The scan has seen them as the oldest; each is looked at again right before it would go."""
    shelf = ShelfMaker(tmp_path)
    for i in range(400):
        shelf.add(1000 + i)
    evictor = Evictor(tmp_path, Limits(shelf_bytes=10**12))
    assert settle(evictor).shelf.files == 400
    hot = shelf.oldest(50)
    for path in hot:
        os.utime(path, (time.time(), path.stat().st_mtime))
    evictor._limits = to_keep(300)
    settle(evictor)
    assert not shelf.gone() & hot
    assert shelf.gone() == shelf.oldest(150) - hot


def test_chunks_used_between_the_walk_and_their_removal_stay(tmp_path: Path) -> None:
    """Candidates near the cut are remembered, and looked at once more."""
    shelf = ShelfMaker(tmp_path)
    chunks = [shelf.add(1000 + i) for i in range(100)]
    sweep = Sweep(tmp_path, removals_max=40)
    sweep.set_namespaces(shelf.folders)
    assert sweep.scan(all_folders=True, seconds_max=10).finished
    cuts = np.zeros((1, 2, 2), dtype=np.int64)
    cuts[:, :, 1] = time.time_ns()
    sweep.begin_removal(cuts)
    # The first call walks all folders and begins with the oldest ones.
    work = sweep.remove(Amount(60, 0), 10)
    begun = work.removed.files
    assert not work.finished and 40 <= begun <= 44  # each thread may have one more in hand
    assert shelf.gone() == shelf.oldest(begun)
    hot = {chunk.path for chunk in chunks[40:50]}
    for path in hot:
        os.utime(path, (time.time(), path.stat().st_mtime))
    work = sweep.remove(Amount(60 - begun, 0), 10)
    assert (work.finished, work.removed.files, work.spared) == (True, 60 - begun, 10)
    assert shelf.gone() == shelf.oldest(70) - hot


def test_a_candidate_that_became_a_link_meanwhile_stays(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    chunks = [shelf.add(1000 + i) for i in range(100)]
    sweep = Sweep(tmp_path, removals_max=40)
    sweep.set_namespaces(shelf.folders)
    assert sweep.scan(all_folders=True, seconds_max=10).finished
    cuts = np.zeros((1, 2, 2), dtype=np.int64)
    cuts[:, :, 1] = time.time_ns()
    sweep.begin_removal(cuts)
    assert not sweep.remove(Amount(60, 0), 10).finished
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * CHUNK_BYTES)
    links = chunks[40:50]
    for chunk in links:
        chunk.path.unlink()
        chunk.path.symlink_to(outside)
        os.utime(chunk.path, (chunk.used_at, chunk.used_at), follow_symlinks=False)
    sweep.remove(Amount(40, 0), 10)
    assert all(chunk.path.is_symlink() for chunk in links) and outside.exists()


def test_the_keys_of_all_that_went_are_told(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path, "one", "two")
    for i in range(300):
        shelf.add(1000 + i, name_space=i % 2, rank=i % 3)
    told: list[tuple[str, int, ChunkKey]] = []
    evictor = Evictor(
        tmp_path,
        to_keep(100),
        on_removed=lambda folder, rank, keys: told.extend((folder, rank, key) for key in keys),
    )
    settle(evictor)
    gone = {
        (shelf.folders[i % 2], i % 3, chunk.key)
        for i, chunk in enumerate(shelf.chunks)
        if not chunk.path.exists()
    }
    assert len(gone) == len(told) == 200 and set(told) == gone


def test_a_first_scan_is_finished_though_no_limit_is_exceeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvshelf.upkeep.evict.refresh.Sampling.AFTER_SECONDS", 0.0)
    monkeypatch.setattr("kvshelf.upkeep.evict.refresh.Sampling.COVERAGE", 0.0)
    shelf = ShelfMaker(tmp_path)
    for i in range(1000):
        shelf.add(1000 + i)
    evictor = Evictor(tmp_path, Limits(shelf_bytes=10**12), files_per_second=4000)
    assert evictor.step(seconds_max=0.1).state is State.SCANNING
    assert settle(evictor).shelf.files == 1000


def test_a_long_first_scan_does_not_hold_up_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins with what a sample of the folders says, and ends with what all say."""
    monkeypatch.setattr("kvshelf.upkeep.evict.refresh.Sampling.AFTER_SECONDS", 0.0)
    shelf = ShelfMaker(tmp_path)
    for i in range(1500):
        shelf.add(1000 + i)
    evictor = Evictor(tmp_path, to_keep(1000), files_per_second=4000)
    report = evictor.step(seconds_max=0.1)
    while not report.removed:
        report = evictor.step(seconds_max=0.1)
    assert not evictor.phase.is_known
    report = settle(evictor)
    gone = shelf.gone()
    assert report.state is State.IDLE and report.shelf.files == 1500 - len(gone)
    # A sample of a hundred chunks, as a busy machine takes, is off by a few percent of all.
    assert len(gone & shelf.oldest(500)) >= 400 and 500 <= len(gone) <= 575


def test_after_a_sample_the_scan_has_twice_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins anew then; else a scan of some seconds would be broken off for ever."""
    monkeypatch.setattr("kvshelf.upkeep.evict.refresh.Sampling.AFTER_SECONDS", 0.01)
    shelf = ShelfMaker(tmp_path)
    for i in range(1500):
        shelf.add(1000 + i)
    evictor = Evictor(tmp_path, to_keep(1000), files_per_second=4000)
    waits = {evictor._sampling._seconds}
    while evictor.step(seconds_max=0.1).state in (State.SCANNING, State.EVICTING):
        waits.add(evictor._sampling._seconds)
    assert {0.01, 0.02} <= waits and 500 <= len(shelf.gone()) <= 575  # as above


def test_a_namespace_has_a_limit_of_its_own(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path, "big", "small")
    for i in range(200):
        shelf.add(1000 + i, name_space=0)
        shelf.add(9000 + i, name_space=1)
    limits = Limits(namespace_bytes_of={"big": 50 * CHUNK_BYTES}, low_percent=100)
    report = settle(Evictor(tmp_path, limits))
    assert report.usage[shelf.folders[0]].files == 50
    assert report.usage[shelf.folders[1]].files == 200
    kept = {chunk.path for chunk in shelf.chunks[0:100:2] if chunk.path.exists()}
    assert len(kept) == 50  # the youngest of that namespace


def test_a_dry_run_removes_nothing_and_says_how_much_would_go(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(300):
        shelf.add(1000 + i)
    told: list[object] = []
    evictor = Evictor(
        tmp_path, to_keep(100), dry_run=True, on_removed=lambda *all_: told.append(all_)
    )
    report = settle(evictor)
    assert report.removed == Amount(200, 200 * CHUNK_BYTES) and report.shelf.files == 300
    assert not shelf.gone() and not told
    assert settle(evictor).removed == Amount()


def test_changes_by_others_are_noticed(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(100):
        shelf.add(1000 + i)
    evictor = Evictor(tmp_path, Limits(shelf_bytes=10**12))
    settle(evictor)
    for chunk in shelf.chunks[:30]:
        chunk.path.unlink()
    for i in range(10):
        shelf.add(i, rank=7)
    evictor._refresh_times.now()
    assert settle(evictor).shelf == Amount(80, 80 * CHUNK_BYTES)


def test_it_stops_while_it_works(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(3000):
        shelf.add(1000 + i)
    evictor = Evictor(tmp_path, to_keep(10), files_per_second=2000)
    stopped_at: list[float] = []

    def stop() -> None:
        stopped_at.append(time.monotonic())
        evictor.stop()

    timer = threading.Timer(0.3, stop)
    timer.start()
    report = evictor.step(seconds_max=60)
    assert report.state is State.STOPPED
    assert time.monotonic() - stopped_at[0] < 1  # 0.1 on a machine that is not busy
    assert not shelf.gone()
    assert evictor.step().state is State.STOPPED
    timer.join()


def test_the_rate_is_kept(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(1000):
        shelf.add(1000 + i)
    begin = time.monotonic()
    settle(Evictor(tmp_path, Limits(shelf_bytes=10**12), files_per_second=2000))
    assert time.monotonic() - begin > 0.4


def test_a_directory_without_a_marker_is_refused(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    shelf.add(1000)
    (tmp_path / "kvshelf.json").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        Evictor(tmp_path, to_keep(0 + 1))
    (tmp_path / "kvshelf.json").write_text('{"kvshelf": 99}')
    with pytest.raises(NotAShelfError):
        Evictor(tmp_path, to_keep(1))


def test_a_root_that_is_replaced_is_left_alone(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path / "a")
    for i in range(10):
        shelf.add(1000 + i)
    other = ShelfMaker(tmp_path / "b")
    other.add(5)
    evictor = Evictor(tmp_path / "a", to_keep(1))
    (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        evictor.step()
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(NotAShelfError, match="another directory"):
        evictor.step()
    assert len(list((tmp_path / "moved").rglob("*.kv"))) == 10


def watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ShelfMaker, Evictor, list[Use]]:
    """Three chunks of which four may stay, and what the file system says that is used."""
    shelf = ShelfMaker(tmp_path)
    use = [Use(10, 10)]
    monkeypatch.setattr(RootWatch, "use", lambda _: use[0])
    for i in range(3):
        shelf.add(100 + i)
    return shelf, Evictor(tmp_path, to_keep(4)), use


def looked(evictor: Evictor, use: Use, cost_seconds: float, ago_seconds: float) -> None:
    """As if its last look had taken so long, so long ago, when so much was used."""
    evictor._refresh_times.begin(use)
    at = time.monotonic() - ago_seconds
    evictor._refresh_times.end(at, cost_seconds, is_done=True)


def test_what_others_store_is_seen_soon_on_a_shelf_that_was_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A look at all folders takes 0.1 s here: in quiet it is made every 40 s, else every second.
    shelf, evictor, use = watched(tmp_path, monkeypatch)
    settle(evictor)
    looked(evictor, use[0], cost_seconds=0.1, ago_seconds=2)
    for i in range(3):
        shelf.add(i)
    assert evictor.step().state is State.IDLE and not shelf.gone()
    use[0] = Use(20, 10)
    settle(evictor)
    assert shelf.gone() == shelf.oldest(2)


def test_a_limit_is_seen_to_be_exceeded_soon_after_a_look_that_was_dear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second evictor has removed from every folder, so the last look took a second. The next
    # would come after ten, but what was stored since may exceed the limit.
    shelf, evictor, use = watched(tmp_path, monkeypatch)
    settle(evictor)
    looked(evictor, use[0], cost_seconds=1.0, ago_seconds=3)
    for i in range(3):
        shelf.add(i)
    use[0] = Use(20, 11)  # one file may have come: the limit holds
    assert evictor.step().state is State.IDLE and not shelf.gone()
    use[0] = Use(20, 13)
    settle(evictor)
    assert shelf.gone() == shelf.oldest(2)


def test_a_limit_that_is_exceeded_during_a_look_is_seen_to_be_after_half_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, evictor, use = watched(tmp_path, monkeypatch)
    quiet = settle(evictor)
    assert quiet.state is State.IDLE and quiet.wait_seconds(60) == 60
    scan = Sweep.scan

    def chunks_come_meanwhile(sweep: Sweep, **how: Any) -> Any:
        done = scan(sweep, **how)
        for i in range(3):
            shelf.add(i)
        use[0] = Use(20, 13)
        return done

    evictor._refresh_times.now()
    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "scan", chunks_come_meanwhile)
        report = evictor.step()
    assert report.state is State.IDLE and not shelf.gone()
    assert report.wait_seconds(60) == 0.5 and report.wait_seconds(0.1) == 0.1
    time.sleep(report.wait_seconds(60))
    settle(evictor)
    assert shelf.gone() == shelf.oldest(2)
