"""What the file system refuses to remove: it is left out, counted and named, and the rest goes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.cli.common import Exit
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import State
from tests.harness.loop_mount import loop_mount
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle

ENGINE_UID = 1000


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """An ext4 image of 64 MB, mounted where other users may go; pytest's folders are root's."""
    with tempfile.TemporaryDirectory(prefix="kvshelf-test-") as folder:
        Path(folder).chmod(0o755)
        # A flag goes with its file system.
        with loop_mount(Path(folder), "ext4", 64, mkfs=("-m", "0")) as mounted:
            yield mounted


def shelf_of(root: Path, chunks: int = 200) -> ShelfMaker:
    """Chunk i is older than chunk i + 1."""
    shelf = ShelfMaker(root)
    for i in range(chunks):
        shelf.add(10_000 - i)
    return shelf


def flag(how: str, paths: list[Path]) -> None:
    subprocess.run(["chattr", how, *map(str, paths)], check=True, timeout=60)


def oldest(shelf: ShelfMaker, count: int) -> list[Path]:
    return [chunk.path for chunk in shelf.chunks[:count]]


def to_keep(chunks: int) -> Limits:
    return Limits(shelf_bytes=chunks * CHUNK_BYTES, low_percent=100)


def once(root: Path, keep: int, *before: str) -> subprocess.CompletedProcess[str]:
    """``kvshelf evict --once`` in a process of its own."""
    command = [*before, sys.executable, "-m", "kvshelf.cli", "evict", str(root), "--once"]
    command += ["--json", "--low-water", "100", "--shelf-limit", str(keep * CHUNK_BYTES)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_the_mark_is_reached_though_the_oldest_are_immutable(mount: Path) -> None:
    shelf = shelf_of(mount / "shelf")
    flag("+i", oldest(shelf, 50))
    report = settle(Evictor(shelf.root, to_keep(60)))
    assert report.state is State.IDLE and report.shelf.files == 60
    # The oldest of the others went: none that is younger than one that stayed.
    assert shelf.gone() == {chunk.path for chunk in shelf.chunks[50:190]}
    assert report.held.amount.files == 50 and report.held.by_errno == {errno.EPERM: 50}
    assert {shelf.root / path for path in report.held.examples} <= set(oldest(shelf, 50))


def test_all_that_can_go_goes_and_then_the_command_says_what_cannot(mount: Path) -> None:
    shelf = shelf_of(mount / "shelf")
    flag("+i", oldest(shelf, 120))
    done = once(shelf.root, 10)
    assert done.returncode == Exit.FINDINGS
    told = json.loads(done.stdout)
    assert told["state"] == "stuck" and told["removed_files"] == 80
    assert told["held"]["files"] == 120 and told["held"]["errnos"] == {str(errno.EPERM): 120}
    assert len(shelf.gone()) == 80
    assert "120 chunks cannot be removed (Operation not permitted: 120), such as " in done.stderr
    assert "--shelf-limit is exceeded, and nothing more may go" in done.stderr


def test_a_flag_that_is_lifted_lets_the_file_go(mount: Path) -> None:
    shelf = shelf_of(mount / "shelf", 40)
    flag("+i", oldest(shelf, 20))
    evictor = Evictor(shelf.root, to_keep(10))
    report = settle(evictor)
    assert report.state is State.STUCK and len(shelf.gone()) == 20
    flag("-i", oldest(shelf, 20))
    evictor._stuck_until.clear()
    assert settle(evictor).state is State.STUCK  # the file system is not asked all the time
    evictor._stuck_until.clear()
    evictor._release_at = 0.0
    report = settle(evictor)
    assert report.state is State.IDLE and shelf.gone() == set(oldest(shelf, 10)) | {
        chunk.path for chunk in shelf.chunks[20:]
    }
    assert not report.held.amount


@pytest.mark.parametrize("what", ["sticky", "read-only"])
def test_a_folder_of_another_owner(mount: Path, what: str) -> None:
    """Sticky: EPERM for the files of others; not writable: EACCES for all in it."""
    shelf = shelf_of(mount / "shelf", 100)
    for path in [mount, *mount.rglob("*")]:
        os.chown(path, ENGINE_UID, ENGINE_UID)
    theirs = oldest(shelf, 40)
    for path in theirs:
        assert len(list(path.parent.iterdir())) == 1
        os.chown(path, 0, 0)
        os.chown(path.parent, 0, 0)
        path.parent.chmod(0o1777 if what == "sticky" else 0o755)
    as_engine = ["setpriv", f"--reuid={ENGINE_UID}", f"--regid={ENGINE_UID}", "--clear-groups"]
    if subprocess.run([*as_engine, sys.executable, "-c", "import kvshelf"], check=False).returncode:
        pytest.skip(f"uid {ENGINE_UID} cannot run this Python")
    done = once(shelf.root, 50, *as_engine)
    told = json.loads(done.stdout)
    code = errno.EPERM if what == "sticky" else errno.EACCES
    assert told["state"] == "idle" and told["held"]["errnos"] == {str(code): 40}, done.stderr
    assert shelf.gone() == {chunk.path for chunk in shelf.chunks[40:90]}
    assert done.returncode == Exit.FINDINGS  # some of it could not be removed


def test_a_namespace_that_may_not_be_written_keeps_nothing_else(mount: Path) -> None:
    shelf = ShelfMaker(mount / "shelf", "theirs", "ours")
    for i in range(60):
        shelf.add(10_000 - i, name_space=0)
    for i in range(60):
        shelf.add(5_000 - i, name_space=1)
    leaves = sorted({path.parent for path in oldest(shelf, 60)})
    flag("+i", leaves)
    report = settle(Evictor(shelf.root, to_keep(70)))
    assert report.state is State.IDLE and report.held.by_errno == {errno.EPERM: 60}
    assert shelf.gone() == {chunk.path for chunk in shelf.chunks[60:110]}
    # Its own limit cannot be met, and does not keep others from theirs.
    limits = Limits(
        namespace_bytes_of={"theirs": CHUNK_BYTES, "ours": 5 * CHUNK_BYTES}, low_percent=100
    )
    report = settle(Evictor(shelf.root, limits))
    assert report.state is State.STUCK
    assert report.usage[shelf.folders[0]].files == 60
    assert report.usage[shelf.folders[1]].files == 5


def test_a_first_look_that_may_sample_ends_though_nothing_can_go(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removal begins from a sample, and is refused everything: the scan goes on all the same."""
    monkeypatch.setattr("kvshelf.upkeep.evict.refresh.Sampling.AFTER_SECONDS", 0.0)
    shelf = shelf_of(mount / "shelf", 300)
    flag("+i", oldest(shelf, 300))
    evictor = Evictor(shelf.root, to_keep(10), files_per_second=1000)
    report = settle(evictor, seconds=60)
    assert (
        evictor.phase.is_known and report.state is State.STUCK and report.held.amount.files == 300
    )


def test_a_read_only_file_system_is_said_to_be_one(mount: Path) -> None:
    shelf = shelf_of(mount / "shelf", 20)
    subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True, timeout=60)
    report = settle(Evictor(shelf.root, to_keep(10)))
    assert report.state is State.STUCK and report.held.by_errno == {errno.EROFS: 20}
    assert not shelf.gone()


def test_a_replica_that_is_refused_says_so_and_lets_another_try(mount: Path) -> None:
    shelf = shelf_of(mount / "shelf", 40)
    flag("+i", oldest(shelf, 30))
    duty = EvictionDuty(
        shelf.root, shelf.folders[0], limits=to_keep(5), lease_seconds=2.0, dir_mode=0o777
    )
    duty._turn.is_ours()
    deadline = time.monotonic() + 30
    while not duty._turn.stands_back:
        assert time.monotonic() < deadline
        duty._evict()
    news = duty.take()
    assert len(shelf.gone()) == 10 and news.removed_files == 10
    assert news.held_chunks == 30 and not news.is_holder
    [fault] = [each for each in news.faults if each.errno == "EPERM"][-1:]
    assert "30 chunks cannot be removed (Operation not permitted: 30), such as " in fault.text
    # Another may take it at once; then this one no longer speaks of what it could not remove.
    other = EvictionDuty(shelf.root, shelf.folders[0], limits=to_keep(5), lease_seconds=2.0)
    while not other._turn.is_ours():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    duty._turn._back_until = 0.0
    duty._evict()
    assert duty.take().held_chunks == 0


def test_a_chunk_that_is_a_mount_point_is_busy_and_stays(mount: Path) -> None:
    shelf = shelf_of(mount / "shelf", 40)
    busy = oldest(shelf, 3)
    try:
        for path in busy:
            subprocess.run(["mount", "--bind", str(path), str(path)], check=True, timeout=60)
        report = settle(Evictor(shelf.root, to_keep(10)))
        assert report.state is State.IDLE and report.held.by_errno == {errno.EBUSY: 3}
        assert shelf.gone() == {chunk.path for chunk in shelf.chunks[3:33]}
    finally:
        for path in busy:
            subprocess.run(["umount", str(path)], check=True, timeout=60)
