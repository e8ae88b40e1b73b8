"""What dead writers left goes before good chunks do; what living ones write stays."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.bench import Scratch
from kvshelf.cli.main import main
from kvshelf.disk.layout import TEMP_FOLDER, TempOwner, temp_name
from kvshelf.disk.this_process import start_ticks_of, this_owner
from kvshelf.upkeep.evict import leftovers
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import State
from tests.harness.quirk_mount import QuirkMount, quirk_mount
from tests.upkeep.evict.shelves import ShelfMaker, settle

CHUNK = 100 << 10
HERE = this_owner()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[QuirkMount]:
    """A volume of 200 chunks' bytes."""
    with quirk_mount(tmp_path, volume_bytes=200 * CHUNK) as mount:
        yield mount


@pytest.fixture
def shelf(mount: QuirkMount) -> ShelfMaker:
    shelf = ShelfMaker(mount.path)
    for i in range(100):
        shelf.add(1000 + i, size=CHUNK, real=True)
    return shelf


def ended() -> TempOwner:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ticks = start_ticks_of(process.pid) or 0
        process.kill()
    return dataclasses.replace(HERE, pid=process.pid, start_ticks=ticks)


def elsewhere() -> TempOwner:
    return dataclasses.replace(HERE, host="another-host")


def put(shelf: ShelfMaker, owner: TempOwner, count: int, size: int = CHUNK) -> list[Path]:
    folder = shelf.root / shelf.folders[0] / TEMP_FOLDER
    folder.mkdir(exist_ok=True)
    made = []
    for number in range(count):
        path = folder / temp_name(owner, number)
        path.write_bytes(bytes(size))
        made.append(path)
    return made


# 100 chunks and 80 temp files of 200; 101 are the low mark: all temp files must go, however many
# steps that takes.
LIMITS = Limits(volume_percent=80, low_percent=63, keep_percent=0)


def test_temp_files_of_dead_writers_go_first_and_count_apart(shelf: ShelfMaker) -> None:
    dead = put(shelf, ended(), 80)
    evictor = Evictor(shelf.root, LIMITS)
    gone = files = 0
    report = evictor.step()
    while report.state in (State.SCANNING, State.EVICTING):
        gone, files = gone + report.leftovers.bytes, files + report.leftovers.files
        report = evictor.step()
    gone, files = gone + report.leftovers.bytes, files + report.leftovers.files
    assert not any(path.exists() for path in dead) and not shelf.gone()
    assert (files, gone) == (80, 80 * CHUNK) and not report.removed and report.state is State.IDLE


def test_when_they_do_not_suffice_chunks_go_too(shelf: ShelfMaker) -> None:
    dead = put(shelf, ended(), 80)
    settle(Evictor(shelf.root, dataclasses.replace(LIMITS, volume_percent=60, low_percent=50)))
    assert not any(path.exists() for path in dead)
    assert shelf.gone() == shelf.oldest(len(shelf.gone())) and len(shelf.gone()) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("owner", [HERE, elsewhere()], ids=["living", "unknown"])
def test_those_of_living_and_of_unknown_writers_stay(shelf: ShelfMaker, owner: TempOwner) -> None:
    kept = put(shelf, owner, 80)
    settle(Evictor(shelf.root, LIMITS))
    assert all(path.exists() for path in kept) and len(shelf.gone()) >= 60


def test_those_of_unknown_writers_go_after_a_day(
    shelf: ShelfMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = put(shelf, elsewhere(), 80)
    real = leftovers._now
    monkeypatch.setattr(leftovers, "_now", lambda root: (real(root) or 0) + 25 * 3600)
    settle(Evictor(shelf.root, LIMITS))
    assert not any(path.exists() for path in old) and not shelf.gone()


@pytest.mark.slow
def test_without_the_file_systems_clock_no_file_is_old(
    shelf: ShelfMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = put(shelf, elsewhere(), 80)
    monkeypatch.setattr(leftovers, "_now", lambda _: None)
    settle(Evictor(shelf.root, LIMITS))
    assert all(path.exists() for path in old)


def test_limits_of_chunks_alone_do_not_look_for_them(shelf: ShelfMaker) -> None:
    dead = put(shelf, ended(), 3)
    settle(Evictor(shelf.root, Limits(shelf_bytes=90 * CHUNK)))
    assert all(path.exists() for path in dead) and len(shelf.gone()) >= 10


def test_others_files_links_and_folders_stay(shelf: ShelfMaker, tmp_path: Path) -> None:
    """Names that are not ours, a link to a file, and a tmp that leads elsewhere."""
    put(shelf, ended(), 80)
    folder = shelf.root / shelf.folders[0] / TEMP_FOLDER
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / temp_name(ended(), 5)).write_bytes(b"theirs")
    (folder / "notes.tmp").write_bytes(b"theirs")
    link = folder / temp_name(ended(), 900)
    link.symlink_to(outside / temp_name(ended(), 5))
    other = ShelfMaker(shelf.root, "other")
    tmp = shelf.root / other.folders[0] / TEMP_FOLDER
    if tmp.exists():
        tmp.rmdir()
    tmp.symlink_to(outside)
    settle(Evictor(shelf.root, LIMITS))
    assert (folder / "notes.tmp").exists() and link.is_symlink()
    assert len(list(outside.iterdir())) == 1


@pytest.mark.slow
def test_a_dead_bench_is_removed_with_all_that_it_wrote(shelf: ShelfMaker) -> None:
    scratch = Scratch(shelf.root)
    scratch.__enter__()
    (scratch.path / "deep").mkdir()
    (scratch.path / "deep" / "file").write_bytes(bytes(80 * CHUNK))
    name = f".{temp_name(ended(), 0)}"
    scratch.path.rename(shelf.root / name)
    settle(Evictor(shelf.root, LIMITS))
    assert not (shelf.root / name).exists() and not shelf.gone()


def test_the_command_tells_them_apart(
    shelf: ShelfMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    put(shelf, ended(), 80)
    line = ["evict", str(shelf.root), "--volume-percent", "53", "--keep-percent", "0"]
    assert main([*line, "--dry-run", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["removed_temp_files"] == 80
    assert sum(1 for _ in shelf.root.rglob("*.tmp")) >= 80
    assert main([*line, "--once"]) == 0
    assert "80 temp files of dead writers" in capsys.readouterr().out and not shelf.gone()
