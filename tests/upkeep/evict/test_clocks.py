"""Nodes whose clocks are wrong, or are set while they run, on one shelf."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvshelf.disk.clock import FileClock, Reading, boot_ns_now
from kvshelf.disk.root import open_root
from kvshelf.disk.usetime import last_use, marked
from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Amount, Limits, Need
from kvshelf.upkeep.evict.report import Report, State
from tests.harness.quirk_mount import REPOSITORY
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle

HOUR = 3600.0
DAY = 24 * HOUR
_LIBRARIES = ("/usr/lib", "/usr/local/lib", "/lib")


def faked(clock: str, control: Path | None = None) -> dict[str, str]:
    """Environment of a process whose CLOCK_REALTIME libfaketime(1) sets; files' times are real."""
    found = [path for lib in _LIBRARIES for path in Path(lib).glob("**/faketime/libfaketime.so.1")]
    if not found:
        pytest.skip("not installed: libfaketime")
    which = {"FAKETIME": clock} if control is None else {"FAKETIME_TIMESTAMP_FILE": str(control)}
    return {
        **os.environ,
        **which,
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
        "NO_FAKE_STAT": "1",
        "FAKE_UTIME": "0",
    }


def node(root: Path, number: int, env: dict[str, str], *more: str) -> tuple[float, Path]:
    """What its clock said, and the chunk that it stored and used."""
    line = [sys.executable, "-m", "tests.upkeep.evict.clock_process", str(root), str(number), *more]
    done = subprocess.run(
        line, env=env, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60
    )
    said, path = done.stdout.split()
    return float(said), root / path


@pytest.mark.parametrize("clock", ["-1h", "+1d", "-20000d", "+3000d"])
def test_a_node_with_a_wrong_clock_writes_right_times(tmp_path: Path, clock: str) -> None:
    root = open_root(tmp_path / "shelf")
    said, path = node(root, 1, faked(clock))
    assert abs(said - time.time()) > HOUR / 2
    assert abs(1e-9 * last_use(path.stat()).ns - time.time()) < 60
    assert abs(path.stat().st_mtime - time.time()) < 60


@pytest.mark.parametrize("clock", ["-1h", "+1d", "-20000d"])
def test_a_shelf_without_an_engine_too(tmp_path: Path, clock: str) -> None:
    """``Shelf.touch`` says "now" by the file system's clock from the start."""
    root = open_root(tmp_path / "shelf")
    _, path = node(root, 1, faked(clock))
    os.utime(path, (1000, 1000))
    node(root, 1, faked(clock), "touch")
    assert abs(path.stat().st_mtime - time.time()) < 60


@pytest.mark.parametrize("new", ["-1h", "+1d", "-20000d"])
def test_a_clock_that_is_set_while_a_node_runs(tmp_path: Path, new: str) -> None:
    root, control = open_root(tmp_path / "shelf"), tmp_path / "clock"
    control.write_text("+0")
    said, path = node(root, 1, faked("", control), str(control), new)
    assert abs(said - time.time()) > HOUR / 2
    assert abs(path.stat().st_mtime - time.time()) < 60


@pytest.mark.parametrize("clock", ["-1h", "+1d", "-20000d", "+10000d"])
def test_an_evictor_with_a_wrong_clock_evicts_what_another_would(
    tmp_path: Path, clock: str
) -> None:
    shelf = ShelfMaker(tmp_path / "shelf")
    for i in range(100):
        shelf.add(10 + 37 * (i * 13 % 100))
    line = [sys.executable, "-m", "kvshelf.cli", "evict", str(shelf.root), "--once", "--json"]
    line += ["--shelf-limit", str(60 * CHUNK_BYTES), "--low-water", "100"]
    done = subprocess.run(
        line, env=faked(clock), check=True, capture_output=True, text=True, timeout=60
    )
    assert shelf.gone() == shelf.oldest(40)
    ages = json.loads(done.stdout)["cut_age_seconds"]
    assert 0 < ages < 2 * HOUR


def test_chunks_of_a_clock_that_was_ahead_are_not_eternal(tmp_path: Path) -> None:
    """Half as older versions wrote them, half as this one; they were stored before the others."""
    shelf = ShelfMaker(tmp_path / "shelf")
    ahead = [shelf.add(-3 * DAY) for _ in range(50)]
    for chunk in ahead[::2]:
        time_ns = marked(int(1e9 * chunk.used_at), reused=False)
        os.utime(chunk.path, ns=(time_ns, time_ns))
    time.sleep(0.05)  # a change time ticks
    shelf.now = time.time()
    right = [shelf.add(0) for _ in range(50)]
    settle(Evictor(shelf.root, Limits(shelf_bytes=45 * CHUNK_BYTES, low_percent=100)))
    left = {chunk.path for chunk in shelf.chunks} - shelf.gone()
    assert len(left) == 45 and left < {chunk.path for chunk in right}


class SetBack(FileClock):
    """The clock of a file server that was set back by so much since it stamped the files."""

    def __init__(self, root: Path, seconds: float) -> None:
        super().__init__(root)
        self.reading = Reading(time.time_ns() - int(1e9 * seconds) - boot_ns_now())

    def read(self) -> Reading | None:
        return self.reading


@pytest.mark.parametrize("seconds", [HOUR, 30 * DAY, 40 * 365 * DAY])
def test_a_server_whose_clock_was_set_back(tmp_path: Path, seconds: float) -> None:
    shelf = ShelfMaker(tmp_path / "shelf")
    for i in range(100):
        shelf.add(10 + i)
    limits = Limits(shelf_bytes=60 * CHUNK_BYTES, low_percent=100)
    settle(Evictor(shelf.root, limits, clock=SetBack(shelf.root, seconds)))
    assert shelf.gone() == shelf.oldest(40)


class Unknown(FileClock):
    """A clock that cannot be measured."""

    def read(self) -> Reading | None:
        self.problem = PermissionError(13, "no")
        return None


def test_without_the_file_systems_clock_the_newest_use_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = ShelfMaker(tmp_path / "shelf")
    for i in range(100):
        shelf.add(10 + i)
    monkeypatch.setattr("kvshelf.upkeep.evict.watch.time.time_ns", lambda: 5)  # 1970
    limits = Limits(shelf_bytes=60 * CHUNK_BYTES, low_percent=100)
    settle(Evictor(shelf.root, limits, clock=Unknown(shelf.root)))
    assert shelf.gone() == shelf.oldest(40)


@pytest.mark.parametrize(
    ("state", "amount", "removed", "faults", "gives_way"),
    [
        (State.STUCK, Amount(5, 5), Amount(), {}, True),
        (State.STUCK, Amount(5, 5), Amount(1, 1), {}, False),
        (State.STUCK, Amount(), Amount(), {}, False),  # what is left may stay
        (State.EVICTING, Amount(5, 5), Amount(), {13: 1}, True),
        (State.IDLE, Amount(), Amount(), {}, False),
    ],
)
def test_who_can_remove_nothing_gives_way(
    state: State, amount: Amount, removed: Amount, faults: dict[int, int], gives_way: bool
) -> None:
    needs = (Need(amount, "shelf_bytes"),)
    report = Report(state, Volume(0, 1), needs=needs, removed=removed, faults=faults)
    assert report.gives_way is gives_way
