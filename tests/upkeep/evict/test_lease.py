"""The lease with real files and real processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvshelf.disk import this_process
from kvshelf.disk.layout import EVICT_FOLDER, LeaseName, TempOwner, parse_lease_name
from kvshelf.disk.root import open_root
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict.lease import LeaseFolder, open_lease

LEASE_SECONDS = 1.5
MODES = {"dir_mode": 0o2770, "file_mode": 0o640}


class Candidate:
    def __init__(self, root: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("lease_process.py")),
                *(str(root), str(LEASE_SECONDS), *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.changes: list[tuple[bool, float]] = []

    @property
    def holds(self) -> bool:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            sign, seconds = line.split()
            self.changes.append((sign == "+", float(seconds)))
        return bool(self.changes) and self.changes[-1][0]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


@contextmanager
def candidates(root: Path, count: int, *options: str) -> Iterator[list[Candidate]]:
    made = [Candidate(root, *options) for _ in range(count)]
    try:
        yield made
    finally:
        for candidate in made:
            candidate.end()


def the_holder(among: list[Candidate], seconds: float = 30.0) -> Candidate:
    """The one that holds it, when all have said something and one of them does."""
    deadline = time.monotonic() + seconds
    while True:
        holders = [candidate for candidate in among if candidate.holds]
        if len(holders) == 1 and all(candidate.changes for candidate in among):
            return holders[0]
        assert time.monotonic() < deadline, holders
        time.sleep(0.01)


def held_by_two(made: list[Candidate]) -> bool:
    """Whether the times in which two said that they hold it overlap."""
    spans = []
    for candidate in made:
        _ = candidate.holds
        ends = [*candidate.changes[1:], (False, time.monotonic())]
        spans += [
            (begin, end)
            for (held, begin), (_, end) in zip(candidate.changes, ends, strict=True)
            if held
        ]
    spans.sort()
    return any(one[1] > two[0] for one, two in itertools.pairwise(spans))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return open_root(tmp_path / "shelf")


def leases(root: Path) -> list[LeaseName | None]:
    return [parse_lease_name(path.name) for path in (root / EVICT_FOLDER).iterdir()]


@pytest.mark.slow
def test_of_ten_processes_one_holds_it_and_when_it_is_killed_one_follows(root: Path) -> None:
    with candidates(root, 10, "--other-host") as made:
        for _ in range(2):
            alive = [candidate for candidate in made if candidate.process.poll() is None]
            holder = the_holder(alive)
            killed = time.monotonic()
            holder.process.kill()
            holder.process.wait()
            _ = holder.holds
            holder.changes.append((False, killed))
            alive.remove(holder)
            heir = the_holder(alive)
            # An unchanged name, seen once in a third of the time; the rest is a busy machine.
            assert heir.changes[-1][1] - killed < LEASE_SECONDS * (1 + 1 / 3) + 5
        assert not held_by_two(made)
        assert len(leases(root)) == 1


def test_a_dead_holder_of_this_machine_is_followed_at_once(root: Path) -> None:
    with candidates(root, 1) as (first,):
        the_holder([first])
        first.process.kill()
        first.process.wait()  # a zombie is still a process
        lease = open_lease(root, lease_seconds=3600)
        assert lease.tick()


def test_a_living_holder_that_proc_hides_is_not_dead(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hidepid two users on one host do not see each other's processes."""
    with candidates(root, 1) as (first,):
        the_holder([first])
        lease = open_lease(root, lease_seconds=3600)
        monkeypatch.setattr(this_process, "start_ticks_of", lambda _: None)
        assert not lease.tick() and first.holds


def test_a_holder_that_was_stopped_notices_before_it_deletes(root: Path) -> None:
    with candidates(root, 3, "--other-host") as made:
        holder = the_holder(made)
        holder.process.send_signal(signal.SIGSTOP)
        others = [candidate for candidate in made if candidate is not holder]
        heir = the_holder(others)
        holder.process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 20
        while holder.holds:  # what it last said was before it was stopped
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # The first that it says when it goes on is that it has it no longer.
        assert [held for held, _ in holder.changes][-2:] == [True, False]
        assert heir.holds


def test_what_is_left_is_taken_at_once(root: Path) -> None:
    with candidates(root, 2, "--release") as made:
        holder = the_holder(made)
        (other,) = [candidate for candidate in made if candidate is not holder]
        holder.end()
        the_holder([other], seconds=LEASE_SECONDS / 3 + 10)
        assert not held_by_two(made)


def test_the_name_says_who_holds_it(root: Path) -> None:
    lease = open_lease(root, lease_seconds=60)
    assert lease.tick() and lease.is_held
    (name,) = leases(root)
    assert name is not None and name.owner is not None
    assert name.owner.pid == os.getpid() and name.token == lease.token
    lease.release()
    (name,) = leases(root)
    assert name is not None and name.owner is None
    assert not lease.is_held


def test_its_folder_is_made_in_a_shelf_only(tmp_path: Path) -> None:
    """A mount point whose file system is not mounted is an empty directory."""
    with pytest.raises(OSError, match=r"kvshelf\.json"):
        open_lease(tmp_path, lease_seconds=60).tick()
    (tmp_path / "kvshelf.json").write_text("{}")
    with pytest.raises(NotAShelfError):
        open_lease(tmp_path, lease_seconds=60).tick()
    assert not (tmp_path / EVICT_FOLDER).exists()


def test_a_link_in_its_place_is_not_followed(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / EVICT_FOLDER).symlink_to(elsewhere)
    with pytest.raises(OSError):
        open_lease(root, lease_seconds=60).tick()
    assert list(elsewhere.iterdir()) == []


def test_other_files_in_its_folder_stay(root: Path) -> None:
    folder = LeaseFolder(root, **MODES)
    folder.create("notes.txt")
    lease = open_lease(root, lease_seconds=60)
    (root / EVICT_FOLDER / str(LeaseName(0, 0, "0" * 16, None))).touch()
    assert lease.tick()
    assert (root / EVICT_FOLDER / "notes.txt").exists()


@pytest.mark.parametrize(
    "name",
    [
        "lease-1-2-0123456789abcdef-free",
        "lease-0000000001-0000000002-0123456789abcdef-free ",
        "lease-0000000001-0000000002-0123456789ABCDEF-free",
        "lease-0000000001-0000000002-0123456789abcdef-h-00000000-01-1-1",
        "lease-0000000001-0000000002-0123456789abcdef",
    ],
)
def test_only_names_that_could_be_made_are_read(name: str) -> None:
    assert parse_lease_name(name) is None


def test_a_name_says_all_of_it_again() -> None:
    owner = TempOwner("node-7.example", "0a1b2c3d", 4026531836, 12, 345)
    for lease in (LeaseName(3, 7, "0" * 16, owner), LeaseName(10**9, 0, "f" * 16, None)):
        assert parse_lease_name(str(lease)) == lease


def test_a_full_disk_keeps_nobody_from_it(root: Path) -> None:
    """A mount without a free block: only names change."""
    mount = root.parent / "full"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mount)], check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount")
    try:
        shelf = open_root(mount / "shelf")
        one, two = (open_lease(shelf, lease_seconds=0.3) for _ in range(2))
        assert one.tick()
        with pytest.raises(OSError, match="No space"):
            (mount / "filler").write_bytes(b"x" * (1 << 20))
        beat = leases(shelf)[0]
        deadline = time.monotonic() + 20
        while not two.tick():  # sees it unchanged, and takes it over
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert leases(shelf)[0] != beat
    finally:
        subprocess.run(["umount", str(mount)], check=True)
