"""Volumes on which removal makes no room, or on which nobody can say: real ones, and quirkfs."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kvshelf.cli import evict_options
from kvshelf.cli.main import main
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import Report, State
from tests.harness.loop_mount import loop_mount
from tests.harness.quirk_mount import quirk_mount
from tests.upkeep.evict.shelves import ShelfMaker

CHUNK = 100 << 10
SETTLE = 3.0  # seconds that these tests wait for statvfs


def fill(root: Path, chunks: int) -> ShelfMaker:
    shelf = ShelfMaker(root)
    for i in range(chunks):
        shelf.add(1000 + i, size=CHUNK, real=True)
    os.sync()
    return shelf


def rest(evictor: Evictor, seconds: float = 90.0) -> Report:
    """Step as a daemon does, until there is nothing to do."""
    deadline = time.monotonic() + seconds
    while True:
        report = evictor.step()
        if report.state not in (State.SCANNING, State.EVICTING):
            return report
        assert time.monotonic() < deadline, report
        time.sleep(report.wait_seconds(1.0))


def percent(path: Path) -> float:
    found = os.statvfs(path)
    used = found.f_blocks - found.f_bfree
    return 100 * used / (used + found.f_bavail)


def without_effect(shelf: ShelfMaker, volume: Path, chunks: int) -> Evictor:
    """A limit just exceeded on a volume where removal frees nothing: little goes; it is told."""
    limits = Limits(volume_percent=percent(volume) - 1, low_percent=50, keep_percent=0)
    evictor = Evictor(shelf.root, limits, settle_seconds=SETTLE)
    before = percent(volume)
    report = rest(evictor)
    assert report.state is State.STUCK and report.unfreed["volume_percent"] > 0
    assert 0 < len(shelf.gone()) <= max(1, 0.02 * chunks) + 1
    assert shelf.gone() == shelf.oldest(len(shelf.gone()))
    assert percent(volume) > before - 1
    for _ in range(5):  # nor later
        assert evictor.step().state is State.STUCK
    return evictor


@pytest.mark.slow
def test_a_hard_linked_backup_on_ext4_keeps_the_rest(tmp_path: Path) -> None:
    with loop_mount(tmp_path, "ext4", 128, mkfs=("-m", "0")) as volume:
        shelf = fill(volume / "shelf", 400)
        subprocess.run(["cp", "-al", shelf.root, volume / "backup"], check=True)
        evictor = without_effect(shelf, volume, 400)
        lost = len(shelf.gone())
        subprocess.run(["rm", "-r", volume / "backup"], check=True)  # the numbers move
        report = rest(evictor)
        assert report.state is State.IDLE and not report.unfreed
        assert len(shelf.gone()) > 100 > lost


@pytest.mark.slow
def test_a_btrfs_snapshot_keeps_the_rest(tmp_path: Path) -> None:
    options = "commit=1"  # seconds until statvfs shows a removal
    with loop_mount(tmp_path, "btrfs", 256, options=options) as volume:
        made = ["btrfs", "subvolume", "create", str(volume / "shelf")]
        subprocess.run(made, check=True, capture_output=True)
        shelf = fill(volume / "shelf", 400)
        snapshot = ["btrfs", "subvolume", "snapshot", "-r", str(shelf.root), str(volume / "then")]
        subprocess.run(snapshot, check=True, capture_output=True)
        without_effect(shelf, volume, 400)


@pytest.mark.slow
def test_without_a_snapshot_btrfs_shows_it_late_and_all_goes_well(tmp_path: Path) -> None:
    with loop_mount(tmp_path, "btrfs", 256, options="commit=2") as volume:
        shelf = fill(volume / "shelf", 400)
        limits = Limits(volume_percent=percent(volume) - 1, low_percent=80, keep_percent=0)
        report = rest(Evictor(shelf.root, limits, settle_seconds=15))
        assert report.state is State.IDLE and not report.unfreed
        assert 40 < len(shelf.gone()) < 250


@pytest.mark.slow
def test_open_descriptors_keep_the_rest(tmp_path: Path) -> None:
    with loop_mount(tmp_path, "ext4", 128, mkfs=("-m", "0")) as volume:
        shelf = fill(volume / "shelf", 400)
        files = [chunk.path.open("rb") for chunk in shelf.chunks]
        try:
            without_effect(shelf, volume, 400)
        finally:
            for file in files:
                file.close()


@pytest.mark.slow
def test_a_trash_folder_is_told_by_once_and_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quirks = {"volume_bytes": 200 * CHUNK, "other_bytes": 90 * CHUNK, "keeps_removed": True}
    with quirk_mount(tmp_path, **quirks) as mount:
        shelf = fill(mount.path, 100)
        line = ["evict", str(mount.path), "--volume-percent", "80", "--keep-percent", "0", "--once"]
        assert main([*line, "--settle", "2", "--json"]) == 1
        done = capsys.readouterr()
        value = json.loads(done.out)
        assert value["state"] == "stuck" and value["removed_files"] == len(shelf.gone()) == 2
        assert value["no_effect"] == [{"limit": "volume_percent", "bytes": 2 * CHUNK}]
        assert "does not show them as free" in done.err and "--volume-percent" in done.err
        mount.set(**(quirks | {"keeps_removed": False}))
        assert main([*line, "--settle", "2"]) == 0
        assert len(shelf.gone()) > 30


@pytest.mark.slow
def test_once_that_ends_above_the_mark_never_ends_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One chunk is asked for and went, and nothing was gained."""
    quirks = {"volume_bytes": 200 * CHUNK, "other_bytes": 60 * CHUNK, "keeps_removed": True}
    with quirk_mount(tmp_path, **quirks) as mount:
        shelf = fill(mount.path, 100)
        line = ["evict", str(mount.path), "--volume-percent", "80", "--low-water", "100", "--once"]
        assert main([*line, "--settle", "2"]) == 1
        assert "does not show them as free" in capsys.readouterr().err
        assert len(shelf.gone()) <= 2


@pytest.mark.slow
def test_growth_at_the_same_time_does_not_look_like_no_effect(tmp_path: Path) -> None:
    """Others write as fast as chunks go."""
    quirks = {"volume_bytes": 2000 * CHUNK, "other_bytes": 1500 * CHUNK}
    with quirk_mount(tmp_path, **quirks) as mount:
        shelf = fill(mount.path, 300)
        limits = Limits(volume_percent=85, low_percent=95, keep_percent=0)
        evictor = Evictor(mount.path, limits, settle_seconds=SETTLE)
        stop, other = threading.Event(), [1500]

        def grow() -> None:
            while not stop.wait(0.1) and other[0] < 1600:
                other[0] += 4
                mount.set(**(quirks | {"other_bytes": other[0] * CHUNK}))

        thread = threading.Thread(target=grow)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while other[0] < 1600:
                report = evictor.step()
                assert not report.unfreed and time.monotonic() < deadline
                time.sleep(report.wait_seconds(0.1))
        finally:
            stop.set()
            thread.join()
        report = rest(evictor)
        assert report.state is State.IDLE and not report.unfreed
        assert report.volume.used_bytes <= 0.85 * 2000 * CHUNK and len(shelf.gone()) > 100


def test_ceph_that_counts_no_free_inodes_keeps_its_shelf(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """f_files is the number of files, f_ffree all ones, which Python reads as -1."""
    statvfs = {"f_files": 12, "f_ffree": 2**64 - 1, "f_favail": 2**64 - 1}
    with quirk_mount(tmp_path, volume_bytes=400 * CHUNK, statvfs=statvfs) as mount:
        shelf = fill(mount.path, 100)
        for keep in ("10", "0"):
            line = ["evict", str(mount.path), "--once", "--json", "--keep-percent", keep]
            assert main(line) == 0
            done = capsys.readouterr()
            value = json.loads(done.out)
            assert value["volume"]["total_inodes"] == 0 and not shelf.gone()
            assert "--inode-percent 90: limits nothing" in done.err and "-1 free of 12" in done.err
        assert main(["evict", str(mount.path), "--once", "--inode-percent", "80"]) == 2
        said = capsys.readouterr().err
        assert "--inode-percent 80" in said and "--shelf-limit" in said


@pytest.mark.parametrize("arguments", [(), ("--volume-percent", "80")])
def test_a_limit_by_percent_of_nothing_is_wrong_usage(
    tmp_path: Path,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evict_options, "COUNT_SECONDS", 1.0)
    nothing = dict.fromkeys(("f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree"), 0)
    with quirk_mount(tmp_path, statvfs=nothing) as mount:
        shelf = fill(mount.path, 20)
        assert main(["evict", str(mount.path), "--once", *arguments]) == 2
        said = capsys.readouterr().err
        assert "--volume-percent" in said and "0 of 0" in said and "--shelf-limit" in said
        assert said.count("waits 1 s at most") == 1
        size = str(10 * CHUNK)
        assert main(["evict", str(mount.path), "--once", "--shelf-limit", size]) == 0
        assert len(shelf.gone()) >= 10
