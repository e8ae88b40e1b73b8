"""Namespaces that nobody uses go, if asked for; one that an engine uses never does."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvshelf import Shelf
from kvshelf.disk.layout import doomed_name
from kvshelf.disk.root import open_namespace, use_namespace
from kvshelf.upkeep.scrub.findings import Action, Kind
from tests.upkeep.scrub.shelves import (
    BLOCKS,
    CONFIG,
    IDENTITY,
    OTHER,
    chunks,
    everything,
    fill,
    found,
)
from tests.upkeep.scrub.test_orphans import later

FOLDER = IDENTITY.folder
DAYS = 30.0
PAST = DAYS * 24 + 1  # hours
WOULD, REMOVED = (Action.WOULD_REMOVE, Action.REMOVED)


@pytest.fixture
def old(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf that nobody has used for 30 days, with a second namespace."""
    fill(shelf, range(4), identity=OTHER)
    later(monkeypatch, PAST)
    # The other one was: a file of a time to come was just used.
    touch(shelf / OTHER.folder / "namespace.json", PAST, access=False)
    return shelf


def touch(path: Path, hours: float, *, access: bool = True) -> None:
    stat = path.stat()
    new = stat.st_mtime + 3600 * hours
    os.utime(path, (new, stat.st_mtime) if access else (stat.st_atime, new))


def test_an_unused_namespace_goes_and_nothing_else(old: Path) -> None:
    before = everything(old)
    assert found(old, unused_days=DAYS, dry_run=True) == [(Kind.UNUSED, FOLDER, WOULD)]
    assert everything(old) == before
    assert found(old, unused_days=DAYS) == [(Kind.UNUSED, FOLDER, REMOVED)]
    after = everything(old)
    assert after == {path: what for path, what in before.items() if not path.startswith(FOLDER)}
    assert f"{OTHER.folder}/namespace.json" in after


def test_by_default_namespaces_stay(old: Path) -> None:
    assert found(old) == [] and (old / FOLDER).exists()


def test_a_day_too_early_it_stays(old: Path) -> None:
    assert found(old, unused_days=DAYS + 1) == []


@pytest.mark.parametrize("access", [True, False])
@pytest.mark.parametrize("what", ["chunk", "namespace.json", "folder", "tmp", "rank"])
def test_one_use_of_late_keeps_it(old: Path, what: str, access: bool) -> None:
    path = {
        "chunk": chunks(old / FOLDER)[-1],
        "namespace.json": old / FOLDER / "namespace.json",
        "folder": chunks(old / FOLDER)[-1].parent,
        "tmp": old / FOLDER / "tmp",
        "rank": old / FOLDER / "r0",
    }[what]
    touch(path, PAST, access=access)
    # That somebody listed a folder or read a file, as a backup does, is no use of it.
    assert found(old, unused_days=DAYS) == ([(Kind.UNUSED, FOLDER, REMOVED)] if access else [])


def test_an_engine_that_lives_keeps_it_however_idle(old: Path) -> None:
    code = (
        "import sys; from kvshelf import Shelf; from tests.upkeep.scrub.shelves import *;"
        f"shelf = Shelf.of_arrays({str(old)!r}, IDENTITY, BLOCKS, config=CONFIG);"
        "print('open', flush=True); sys.stdin.read()"
    )
    line = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(line, text=True, **pipes) as engine:  # type: ignore[call-overload]
        assert engine.stdout.readline() == "open\n"
        # As if it had begun long ago.
        os.utime(old / FOLDER / "namespace.json", (0, 0))
        assert found(old, unused_days=DAYS) == []
        engine.kill()
    assert found(old, unused_days=DAYS) == [(Kind.UNUSED, FOLDER, REMOVED)]


def test_a_shelf_gives_its_namespace_up(old: Path) -> None:
    shelf = Shelf.of_arrays(old, IDENTITY, BLOCKS, config=CONFIG)
    assert found(old, unused_days=DAYS) == []
    shelf.close()
    assert found(old, unused_days=DAYS) == [(Kind.UNUSED, FOLDER, REMOVED)]
    shelf = Shelf.of_arrays(old, IDENTITY, BLOCKS, config=CONFIG)  # and may come again
    assert (old / FOLDER / "namespace.json").exists()
    del shelf
    assert found(old, unused_days=DAYS) == [(Kind.UNUSED, FOLDER, REMOVED)]


def test_two_engines_use_it_together(old: Path) -> None:
    first, second = use_namespace(old, IDENTITY), use_namespace(old, IDENTITY)
    assert first is not None and second is not None
    os.close(first)
    assert found(old, unused_days=DAYS) == []
    os.close(second)
    assert found(old, unused_days=DAYS) != []


def test_an_engine_that_starts_during_the_removal_makes_it_anew(old: Path) -> None:
    path = old / FOLDER / "namespace.json"
    result: list[int | None] = []
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        engine = threading.Thread(target=lambda: result.append(use_namespace(old, IDENTITY)))
        engine.start()
        engine.join(0.3)
        assert engine.is_alive()  # it waits for what is being removed
        gone = old / doomed_name(FOLDER, "01234567")
        (old / FOLDER).rename(gone)
    engine.join(10)
    [descriptor] = result
    assert descriptor is not None and path.exists()
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    # What a killed scrub left behind is deleted by the next one.
    assert found(old, dry_run=True) == [] and gone.exists()
    assert found(old, unused_days=DAYS) == [] and not gone.exists()
    os.close(descriptor)


def test_a_lock_on_what_was_just_removed_is_none(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has opened namespace.json, then the scrub takes the folder, then it locks."""
    real, gone = fcntl.flock, old / doomed_name(FOLDER, "01234567")

    def flock(descriptor: int, operation: int) -> None:
        if not gone.exists():
            (old / FOLDER).rename(gone)
            open_namespace(old, IDENTITY)  # another engine is quicker
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    descriptor = use_namespace(old, IDENTITY)
    assert descriptor is not None
    assert os.path.samestat(os.fstat(descriptor), (old / FOLDER / "namespace.json").stat())
    os.close(descriptor)


def test_what_is_not_kvshelfs_keeps_it(old: Path) -> None:
    path = chunks(old / FOLDER)[0].with_name("notes.txt")
    path.write_text("mine")
    for folder in (path.parent,):
        os.utime(folder, (0, 0))
    before = everything(old)
    name = str(path.relative_to(old))
    assert found(old, unused_days=DAYS) == [
        (Kind.UNUSED, FOLDER, Action.KEPT),
        (Kind.FOREIGN, name, Action.KEPT),
    ]
    assert everything(old) == before


def test_what_somebody_puts_into_a_folder_that_is_being_removed_is_kept(old: Path) -> None:
    gone = old / doomed_name(FOLDER, "01234567")
    (old / FOLDER).rename(gone)
    (gone / "notes.txt").write_text("mine")
    name = f"{gone.name}/notes.txt"
    assert found(old) == [(Kind.FOREIGN, name, Action.KEPT)]
    assert [path.name for path in gone.iterdir()] == ["notes.txt"]


def test_without_a_namespace_json_nobody_can_tell(old: Path) -> None:
    (old / FOLDER / "namespace.json").unlink()
    path = f"{FOLDER}/namespace.json"
    assert found(old, unused_days=DAYS) == [(Kind.NAMESPACE, path, Action.KEPT)]


def test_a_link_to_a_namespace_is_not_followed(old: Path, tmp_path: Path) -> None:
    (old / FOLDER).rename(tmp_path / "outside")
    (old / FOLDER).symlink_to(tmp_path / "outside")
    before = everything(tmp_path / "outside")
    assert found(old, unused_days=DAYS) == [(Kind.FOREIGN, FOLDER, Action.KEPT)]
    assert everything(tmp_path / "outside") == before
