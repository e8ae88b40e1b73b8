"""The file system's clock, however this machine's is set, and on storage that has quirks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.disk.clock import FileClock
from kvshelf.disk.layout import EVICT_FOLDER, temp_name
from kvshelf.disk.root import open_root, this_owner
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict.lease import open_lease
from tests.harness.quirk_mount import QuirkMount, quirk_mount

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = open_root(tmp_path / "shelf")
    (root / EVICT_FOLDER).mkdir()
    return root


@pytest.fixture
def quirks(tmp_path: Path) -> Iterator[QuirkMount]:
    with quirk_mount(tmp_path) as mounted:
        open_root(mounted.path / "shelf")
        (mounted.path / "shelf" / EVICT_FOLDER).mkdir()
        yield mounted


class Machine:
    """This machine's clocks, as a test sets them."""

    def __init__(self) -> None:
        self.set_ns = 0  # what was added to CLOCK_REALTIME
        self.passed_ns = 0  # what was waited

    def clock(self, root: Path) -> FileClock:
        return FileClock(root, real_ns=self.real_ns, boot_ns=self.boot_ns)

    def real_ns(self) -> int:
        return time.time_ns() + self.set_ns + self.passed_ns

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self.passed_ns


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def near(one_ns: int, other_ns: int, within_ns: int = 60 * SECOND) -> bool:
    return abs(one_ns - other_ns) < within_ns


def test_a_right_clock_is_left_alone(root: Path) -> None:
    clock = FileClock(root)
    reading = clock.read()
    assert reading is not None and reading.offset_ns == 0 and reading.step_ns == 1
    assert near(clock.now_ns(), time.time_ns(), SECOND) and clock.problem is None
    assert names(root / EVICT_FOLDER) == set()


@pytest.mark.parametrize("set_ns", [HOUR, -HOUR, DAY, -57 * 365 * DAY, 100 * 365 * DAY])
def test_a_machine_with_a_wrong_clock_has_the_file_systems(root: Path, set_ns: int) -> None:
    machine = Machine()
    machine.set_ns = set_ns
    clock = machine.clock(root)
    assert near(clock.now_ns(), time.time_ns())
    assert clock.reading is not None and near(clock.reading.offset_ns, -set_ns)


@pytest.mark.parametrize("set_ns", [HOUR, -HOUR, -57 * 365 * DAY])
def test_a_clock_that_is_set_meanwhile_changes_nothing(root: Path, set_ns: int) -> None:
    machine = Machine()
    clock = machine.clock(root)
    first = clock.read()
    assert near(clock.now_ns(), time.time_ns()) and clock.read() is first
    machine.set_ns = set_ns
    assert near(clock.now_ns(), time.time_ns())
    assert clock.read() is not first  # measured anew at once


def test_it_is_measured_again_now_and_then(root: Path) -> None:
    machine = Machine()
    clock = machine.clock(root)
    first = clock.read()
    machine.passed_ns = 30 * SECOND
    assert clock.read() is first
    machine.passed_ns = 61 * SECOND
    assert clock.read() is not first


@pytest.mark.parametrize("offset", [-3600.0, 86_400.0, 10 * 365 * 86_400.0])
def test_a_server_whose_clock_is_wrong_is_right(quirks: QuirkMount, offset: float) -> None:
    quirks.set(clock_offset_seconds=offset)
    now_ns = FileClock(quirks.path / "shelf").now_ns()
    assert near(now_ns, time.time_ns() + int(1e9 * offset))


@pytest.mark.parametrize("step_ns", [1_000, 1_000_000, SECOND, 2 * SECOND])
def test_the_step_of_times_is_found(quirks: QuirkMount, step_ns: int) -> None:
    quirks.set(time_step_ns=step_ns)
    reading = FileClock(quirks.path / "shelf").read()
    assert reading is not None and reading.step_ns == step_ns and reading.offset_ns == 0


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_on_a_full_disk_the_lease_tells(quirks: QuirkMount, error: str) -> None:
    root = quirks.path / "shelf"
    open_lease(root, lease_seconds=10).tick()
    (root / EVICT_FOLDER / "lease-0000000000-0000000000-0000000000000000-free").touch()
    quirks.set(errors={"create": error}, clock_offset_seconds=-7200.0)
    clock = FileClock(root)
    assert near(clock.now_ns(), time.time_ns() - 2 * HOUR) and clock.problem is None


def test_what_cannot_be_measured_stays_as_it_was(quirks: QuirkMount) -> None:
    root = quirks.path / "shelf"
    machine = Machine()
    quirks.set(clock_offset_seconds=-7200.0)
    clock = machine.clock(root)
    first = clock.read()
    quirks.set(errors={"create": "EROFS"}, clock_offset_seconds=-7200.0)
    machine.passed_ns = 120 * SECOND
    assert clock.read() is first and isinstance(clock.problem, OSError)
    quirks.set(clock_offset_seconds=-7200.0)
    machine.passed_ns = 240 * SECOND
    assert clock.read() is not first and clock.problem is None


def test_without_any_measurement_this_machines_counts(tmp_path: Path) -> None:
    clock = FileClock(tmp_path / "absent")
    assert near(clock.now_ns(), time.time_ns()) and isinstance(clock.problem, OSError)


def test_nothing_is_made_in_a_directory_that_is_no_shelf(tmp_path: Path) -> None:
    (tmp_path / EVICT_FOLDER).mkdir()
    clock = FileClock(tmp_path)
    assert clock.read() is None and clock.problem is not None
    (tmp_path / "kvshelf.json").write_text('{"kvshelf": 99}')
    with pytest.raises(NotAShelfError):
        clock.measure()
    assert names(tmp_path) == {EVICT_FOLDER, "kvshelf.json"}
    assert names(tmp_path / EVICT_FOLDER) == set()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    root, outside = open_root(tmp_path / "shelf"), tmp_path / "outside"
    outside.mkdir()
    before = outside.stat().st_mtime_ns
    (root / EVICT_FOLDER).symlink_to(outside)
    assert FileClock(root).read() is not None
    assert outside.stat().st_mtime_ns == before
    assert names(root) == {EVICT_FOLDER, "kvshelf.json"}


def test_a_file_that_a_killed_measurement_left_is_removed(root: Path) -> None:
    folder = root / EVICT_FOLDER
    here = this_owner()
    dead = type(here)(here.host, here.boot, here.pids, here.pid, here.start_ticks + 1)
    away = type(here)("elsewhere", here.boot, here.pids, here.pid, here.start_ticks)
    for owner in (here, dead, away):
        (folder / temp_name(owner, 7)).touch()
    (folder / "notes.txt").touch()
    FileClock(root).measure()
    kept = {temp_name(here, 7), temp_name(away, 7), "notes.txt"}
    assert names(folder) == kept
