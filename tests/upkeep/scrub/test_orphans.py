"""Temp files: those of dead writers go, those of living ones stay, others are judged by age."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.disk import this_process
from kvshelf.disk.layout import TempOwner, temp_name
from kvshelf.disk.this_process import start_ticks_of, this_owner
from kvshelf.upkeep.scrub import scrubber
from kvshelf.upkeep.scrub.findings import Action, Kind
from kvshelf.upkeep.scrub.mount import look_at_mount
from tests.upkeep.scrub.shelves import IDENTITY, everything, found, scrubbed

HERE = this_owner()
OLD, YOUNG = 25.0, 23.0  # hours; an orphan's age is 24


@pytest.fixture
def living() -> Iterator[TempOwner]:
    """A process of this machine, as an owner."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield dataclasses.replace(HERE, pid=process.pid, start_ticks=start_ticks_of(process.pid) or 0)
    process.kill()
    process.wait()


@pytest.fixture
def dead() -> TempOwner:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ticks = start_ticks_of(process.pid) or 0
        process.kill()
    return dataclasses.replace(HERE, pid=process.pid, start_ticks=ticks)


def put(
    root: Path, owner: TempOwner, *, folder: str = f"{IDENTITY.folder}/tmp", dot: str = ""
) -> str:
    path = f"{folder}/{dot}{temp_name(owner, 7)}".lstrip("/")
    (root / path).write_bytes(bytes(5000))
    return path


def later(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    """The file system's clock goes on; change times cannot be set back."""

    def looked(root: int) -> object:
        mount = look_at_mount(root)
        assert mount.now is not None
        return dataclasses.replace(mount, now=mount.now + 3600 * hours)

    monkeypatch.setattr(scrubber, "look_at_mount", looked)


@pytest.mark.parametrize("dot", ["", "."])
def test_a_dead_writers_file_is_removed_at_once(shelf: Path, dead: TempOwner, dot: str) -> None:
    path = put(shelf, dead, dot=dot)
    assert found(shelf, dry_run=True) == [(Kind.ORPHAN, path, Action.WOULD_REMOVE)]
    assert (shelf / path).exists()
    assert found(shelf) == [(Kind.ORPHAN, path, Action.REMOVED)]
    assert not (shelf / path).exists()


def test_a_dead_writers_file_in_the_root_is_removed(shelf: Path, dead: TempOwner) -> None:
    path = put(shelf, dead, folder="", dot=".")
    bare = put(shelf, dead, folder="")  # kvshelf never makes one without a dot there
    assert found(shelf) == [
        (Kind.ORPHAN, path, Action.REMOVED),
        (Kind.FOREIGN, bare, Action.KEPT),
    ]
    assert not (shelf / path).exists() and (shelf / bare).exists()


@pytest.mark.parametrize("hours", [YOUNG, OLD, 10_000])
def test_a_living_writers_file_stays_however_old(
    shelf: Path, living: TempOwner, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(shelf, living)
    later(monkeypatch, hours)
    findings, run = scrubbed(shelf)
    assert findings == [] and run.totals.writing == 1 and (shelf / path).exists()


def test_a_pid_that_is_another_process_by_now_is_dead(shelf: Path, living: TempOwner) -> None:
    path = put(shelf, dataclasses.replace(living, start_ticks=living.start_ticks - 1))
    assert found(shelf) == [(Kind.ORPHAN, path, Action.REMOVED)]


@pytest.mark.parametrize(
    "other",
    [{"host": "elsewhere"}, {"boot": "00000000"}, {"pids": HERE.pids + 1}],
    ids=["another host", "another boot", "another PID namespace"],
)
def test_a_writer_that_cannot_be_looked_for_is_judged_by_age(
    shelf: Path, dead: TempOwner, other: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(shelf, dataclasses.replace(dead, **other))
    assert found(shelf) == []
    later(monkeypatch, YOUNG)
    os.utime(shelf / path, (0, 0))  # as some archives set it: the change time says when
    assert found(shelf) == [] and (shelf / path).exists()
    assert found(shelf, temp_hours=22) == [(Kind.ORPHAN, path, Action.REMOVED)]
    path = put(shelf, dataclasses.replace(dead, **other))
    later(monkeypatch, OLD)
    assert found(shelf) == [(Kind.ORPHAN, path, Action.REMOVED)]


def test_a_real_writer_of_another_pid_namespace(shelf: Path) -> None:
    code = (
        "from kvshelf.disk.this_process import this_owner;"
        "from kvshelf.disk.layout import temp_name;"
        "print(temp_name(this_owner(), 1))"
    )
    line = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"no new PID namespace here: {done.stderr.strip()}")
    path = shelf / IDENTITY.folder / "tmp" / done.stdout.strip()
    path.write_bytes(b"")
    assert found(shelf) == [] and path.exists()


def test_without_the_file_systems_clock_nothing_is_old(
    shelf: Path, dead: TempOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(shelf, dataclasses.replace(dead, host="elsewhere"))
    path = put(shelf, dead)
    monkeypatch.setattr(
        scrubber, "look_at_mount", lambda root: dataclasses.replace(look_at_mount(root), now=None)
    )
    assert found(shelf, unused_days=0.1) == [(Kind.ORPHAN, path, Action.REMOVED)]


def test_a_process_that_proc_hides_is_not_dead(
    shelf: Path, living: TempOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hidepid /proc does not show other users' processes; kill(2) still knows them."""
    path = put(shelf, living)
    monkeypatch.setattr(this_process, "start_ticks_of", lambda pid: None)
    assert found(shelf) == [] and (shelf / path).exists()


def test_what_is_no_temp_file_is_kept(shelf: Path, dead: TempOwner, tmp_path: Path) -> None:
    folder = shelf / IDENTITY.folder / "tmp"
    name = temp_name(dead, 7)
    (folder / "notes.tmp").write_text("mine")
    (folder / f"0{name}".replace(".tmp", ".kv")).write_text("mine")
    (folder / name).symlink_to(tmp_path / "outside")
    os.mkfifo(folder / temp_name(dead, 8))
    (folder / temp_name(dead, 9)).mkdir()
    before = everything(shelf)
    assert [(kind, action) for kind, _, action in found(shelf)] == [(Kind.FOREIGN, Action.KEPT)] * 5
    assert everything(shelf) == before


def test_a_tmp_folder_that_is_a_link_is_not_entered(
    shelf: Path, dead: TempOwner, tmp_path: Path
) -> None:
    folder = shelf / IDENTITY.folder / "tmp"
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / temp_name(dead, 7)).write_text("not under the root")
    path = f"{IDENTITY.folder}/tmp"
    assert found(shelf) == [(Kind.FOREIGN, path, Action.KEPT)]
    assert (tmp_path / "outside" / temp_name(dead, 7)).exists()
