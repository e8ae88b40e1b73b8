"""What commands make in a shelf belongs to the shelf's users, whoever runs them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvshelf import Chunk, EngineConfig, Identity, Shelf, make_key
from kvshelf.bench.scratch import Scratch
from kvshelf.cli.main import main
from kvshelf.disk.leftovers import remove_dead_scratch
from kvshelf.disk.mend import mend_owners
from kvshelf.disk.root import open_root
from kvshelf.doctor.folders import check_folders
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.turn import Turn
from tests.disk.test_modes import ALICE, BOB, GROUP, as_user
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="other users need root"),
]
EVICT = ["evict", "--once", "--shelf-limit", str(10 * CHUNK_BYTES)]


@pytest.fixture(params=[0o2770, 0o755], ids=["a group", "one user"])
def shared(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A shelf of ALICE's engines; pytest's directories are closed to others."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        root = Path(parent) / "shelf"
        root.mkdir()
        os.chown(root, ALICE, GROUP)
        root.chmod(request.param)

        def fill() -> None:
            shelf = ShelfMaker(root)
            for i in range(20):
                shelf.add(1000 + i)

        as_user(ALICE, [GROUP], 0o022, fill)
        yield root


def owners(root: Path) -> set[tuple[int, int]]:
    found = {path.lstat() for path in root.rglob("*")}
    return {(each.st_uid, each.st_gid) for each in found}


def closed(root: Path) -> list[Path]:
    """Folders that the root's group may not write to, though it may write to the root."""
    if not root.stat().st_mode & stat.S_IWGRP:
        return []
    return [
        path
        for path in (root / name for name in ("evict", "removed", "doctor"))
        if path.is_dir() and path.stat().st_mode & 0o2070 != 0o2070
    ]


def take_lease(root: Path) -> None:
    faults: list[Exception] = []
    turn = Turn(root, lease_seconds=5, on_fault=lambda _, error: faults.append(error))
    assert turn.is_ours(), faults
    turn.removed("tiny-0123456789ab", 0, [b"k" * 32])
    turn.leave()
    assert not faults


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize(
    "command",
    [
        EVICT,
        ["scrub"],
        ["doctor", "--quick"],
        ["doctor", "--quick", "--peer", "--wait", "0.6"],
    ],
    ids=lambda words: "-".join(words[:3]),
)
def test_what_root_runs_leaves_nothing_of_roots(
    shared: Path, umask: int, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(umask)
    try:
        main([command[0], str(shared), *command[1:]])
    finally:
        os.umask(before)
    assert {user for user, _ in owners(shared)} == {ALICE}
    assert closed(shared) == []
    as_user(ALICE, [GROUP], 0o022, lambda: take_lease(shared))
    if shared.stat().st_mode & stat.S_IWGRP:
        as_user(BOB, [GROUP], 0o022, lambda: take_lease(shared))


def test_an_evictor_of_root_and_engines_of_others_take_turns(shared: Path) -> None:
    line = [sys.executable, "-m", "kvshelf.cli", "evict", str(shared), "--every", "0.05"]
    line += ["--shelf-limit", str(10 * CHUNK_BYTES), "--lease", "1"]
    with subprocess.Popen(line, umask=0o022, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        try:
            daemon.stdout.readline()  # it has evicted
            assert {user for user, _ in owners(shared)} == {ALICE}
        finally:
            daemon.terminate()
    as_user(ALICE, [GROUP], 0o022, lambda: take_lease(shared))
    take_lease(shared)
    as_user(ALICE, [GROUP], 0o022, lambda: take_lease(shared))


def spoil(shared: Path) -> None:
    """As an older kvshelf left it."""
    for name in ("evict", "removed"):
        folder = shared / name
        folder.mkdir(exist_ok=True)
        (folder / ("lease-0000000001-0000000000-0000000000000000-free")).touch()
        for path in (folder, *folder.iterdir()):
            os.chown(path, 0, 0)
            path.chmod(0o750 if path.is_dir() else 0o640)


def test_a_folder_of_root_is_one_error_with_its_mend(
    shared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(shared)

    def work() -> None:
        duty = EvictionDuty(shared, "x", limits=Limits(shelf_bytes=1), lease_seconds=5)
        duty._guarded("evict", duty._evict)
        [fault] = duty.take().faults
        assert fault.errno == "EACCES" and fault.part == "lease"
        assert f"run as root: chown -R {ALICE}:{GROUP} {shared}/evict" in fault.text
        assert f"chmod 2770 {shared}/evict" in fault.text

    as_user(ALICE, [GROUP], 0o022, work)
    assert main([EVICT[0], str(shared), *EVICT[1:]]) == 0
    assert "gave" in capfd.readouterr().err
    as_user(ALICE, [GROUP], 0o022, lambda: take_lease(shared))
    assert {user for user, _ in owners(shared)} == {ALICE}


def test_a_doctor_says_which_folders_are_closed(
    shared: Path,
) -> None:
    def all_open() -> None:
        assert check_folders(shared) == []

    def closed() -> None:
        found = check_folders(shared)
        assert len(found) == 2
        for each, name in zip(found, ("evict", "removed"), strict=True):
            assert f"{shared}/{name} is of user 0 and group 0, mode 0750" in each.message
            assert each.remedy.startswith(f"run as root: chown -R {ALICE}:{GROUP} {shared}/{name}")

    as_user(ALICE, [GROUP], 0o022, all_open)
    spoil(shared)
    as_user(ALICE, [GROUP], 0o022, closed)


def test_scratch_that_root_left_is_removed_by_an_engine(shared: Path) -> None:
    child = os.fork()
    if child == 0:
        scratch = Scratch(shared)
        scratch.__enter__()
        config = EngineConfig(io_threads=1, lookup_threads=1)
        blocks = np.zeros((8, 4096), dtype=np.uint8)
        with Shelf.of_arrays(
            scratch.path, Identity({"model": "m"}), blocks, config=config
        ) as shelf:
            shelf.store([Chunk(make_key(b"k" * 32, 0), range(3))])
        os._exit(0)
    os.waitpid(child, 0)
    [left] = [path for path in shared.iterdir() if path.name.startswith(".")]
    assert list(left.rglob("*.kv"))

    def remove() -> None:
        assert remove_dead_scratch(shared) == 1

    as_user(ALICE, [GROUP], 0o022, remove)
    assert not left.exists()


def test_a_namespace_of_root_is_mended_with_all_folders(shared: Path) -> None:
    [space] = [path for path in shared.iterdir() if "-" in path.name]
    for path in (space, *space.rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(0o750 if path.is_dir() else 0o640)
    assert mend_owners(shared)
    for path in (space, *(each for each in space.rglob("*") if each.is_dir())):
        assert path.stat().st_uid == ALICE and path.stat().st_gid == GROUP
    assert mend_owners(shared) == []


def test_a_shelf_of_very_many_ranks_holds_up_no_command(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [space] = [path for path in shared.iterdir() if "-" in path.name]
    for rank in range(1, 20):
        (space / f"r{rank}").mkdir()
    spoil(shared)
    monkeypatch.setattr("kvshelf.disk.mend._SECONDS_MAX", -1.0)
    mended = mend_owners(shared)
    assert {"evict", "removed"} <= set(mended)  # these come first
    assert (space / "r19").stat().st_uid == 0
    monkeypatch.undo()
    mend_owners(shared)
    assert (space / "r19").stat().st_uid == ALICE


def test_nothing_else_is_given_away(shared: Path, tmp_path: Path) -> None:
    """Links, second names of a file, others' names, and directories without a marker."""
    canary = tmp_path / "canary"
    canary.mkdir()
    secret = shared.parent / "secret"
    secret.write_text("root's")
    (shared / "evict").symlink_to(canary)
    (shared / "removed").mkdir()
    os.link(secret, shared / "removed" / "second")
    (shared / "removed" / "link").symlink_to(secret)
    (shared / "others").mkdir()
    (shared / "other-0123456789ab").symlink_to(canary)
    mend_owners(shared)
    for path in (canary, secret, shared / "others", shared / "evict"):
        assert path.lstat().st_uid == 0, path
    assert (shared / "removed").stat().st_uid == ALICE
    bare = tmp_path / "bare"
    (bare / "evict").mkdir(parents=True)
    os.chown(bare, ALICE, GROUP)
    with pytest.raises(FileNotFoundError):
        mend_owners(bare)
    assert (bare / "evict").stat().st_uid == 0


def test_what_is_right_stays_as_it_is(shared: Path) -> None:
    def seen() -> dict[Path, tuple[int, ...]]:
        return {
            path: (path.lstat().st_uid, path.lstat().st_gid, path.lstat().st_ctime_ns)
            for path in shared.rglob("*")
        }

    mend_owners(shared)  # folders that the test has made
    before = seen()
    assert mend_owners(shared) == []
    assert seen() == before


def test_a_mount_that_squashes_root_is_said(
    shared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    take_lease(open_root(shared))
    assert f"not the root's {ALICE} and {GROUP} (Operation not permitted)" in caplog.text
