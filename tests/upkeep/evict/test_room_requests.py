"""Stores that fail for lack of room which no limit sees: quotas. Whoever evicts hears of it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvshelf.disk.layout import EVICT_FOLDER, parse_room_name
from kvshelf.disk.root import open_root
from kvshelf.upkeep.evict import duty as duty_module
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.lease import open_lease
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.room import RoomRequests
from tests.cli.test_evict import Daemon
from tests.harness.loop_mount import loop_mount
from tests.harness.quirk_mount import quirk_mount
from tests.upkeep.evict.shelves import ShelfMaker
from tests.upkeep.evict.test_duty import Heard, duties

CHUNK = 100 << 10


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(duty_module, "WAKE_SECONDS", 0.02)
    return open_root(tmp_path / "shelf")


def rooms(root: Path) -> list[str]:
    names = [path.name for path in (root / EVICT_FOLDER).iterdir()]
    return [name for name in names if parse_room_name(name) is not None]


def requests(root: Path) -> RoomRequests:
    """That are looked at whenever they are asked for."""
    clock = iter(range(0, 10**9, 10))
    return RoomRequests(root, clock=lambda: float(next(clock)))


class TestName:
    def test_a_request_is_heard_once(self, root: Path) -> None:
        open_lease(root, lease_seconds=5).tick()
        holder, engine = requests(root), requests(root)
        assert not holder.heard() and not holder.heard()
        engine.ask()
        assert holder.heard() and not holder.heard()
        engine.ask()
        requests(root).ask()
        assert holder.heard() and not holder.heard()
        assert len(rooms(root)) == 1 and (root / EVICT_FOLDER / rooms(root)[0]).stat().st_size == 0

    def test_what_was_asked_of_another_is_not_heard(self, root: Path) -> None:
        open_lease(root, lease_seconds=5).tick()
        requests(root).ask()
        assert not requests(root).heard()

    def test_names_that_two_made_become_one(self, root: Path) -> None:
        open_lease(root, lease_seconds=5).tick()
        for count in (3, 9):
            (root / EVICT_FOLDER / f"room-{count:010}").touch()
        (root / EVICT_FOLDER / "room-notes").touch()
        requests(root).heard()
        assert rooms(root) == ["room-0000000009"]
        assert (root / EVICT_FOLDER / "room-notes").exists()

    def test_without_anybody_that_evicts_nothing_is_made(self, root: Path) -> None:
        requests(root).ask()
        assert not requests(root).heard() and not (root / EVICT_FOLDER).exists()

    def test_a_link_is_not_followed(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (root / EVICT_FOLDER).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="evict"):
            requests(root).ask()
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_it_works_where_no_block_and_no_inode_is_left(self, tmp_path: Path) -> None:
        with loop_mount(tmp_path, "ext4", 8, mkfs=("-m", "0", "-N", "64")) as volume:
            root = open_root(volume / "shelf")
            open_lease(root, lease_seconds=5).tick()
            holder = requests(root)
            holder.heard()
            (volume / "others").mkdir()
            fill(volume / "others")
            with pytest.raises(OSError, match="No space"):
                (volume / "others" / "more").touch()
            requests(root).ask()
            assert holder.heard()


def fill(folder: Path) -> None:
    """Take all blocks and inodes."""
    with contextlib.suppress(OSError), (folder / "bytes").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (folder / str(number)).touch()


def test_an_engine_without_the_lease_asks_and_the_holder_evicts(root: Path) -> None:
    shelf = ShelfMaker(root)
    for i in range(200):
        shelf.add(10_000 - i, size=64 << 10)
    roomy = Limits(shelf_bytes=1 << 40)
    with duties(root, 2, limits=roomy) as made:
        deadline = time.monotonic() + 20
        while not rooms_there(root):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        heard = [Heard(duty) for duty in made]
        while not any(each.until(lambda _: True).is_holder for each in heard):
            for each in heard:
                each.news = each.duty.take()
            assert time.monotonic() < deadline
        [other] = [each for each in heard if not each.news.is_holder]
        [holder] = [each for each in heard if each.news.is_holder]
        other.duty.want_room()
        holder.until(lambda news: news.removed_files >= 10)
        assert other.until(lambda news: news.room_requests == 1).removed_files == 0
        assert shelf.gone() == shelf.oldest(10)  # a twentieth
        holder.duty.want_room()
        holder.until(lambda news: news.removed_files >= 19)
        for _ in range(20):  # no more than a tenth in a minute
            other.duty.want_room()
            time.sleep(0.05)
        assert 19 <= len(shelf.gone()) <= 20
        assert not holder.news.faults and not other.news.faults


def rooms_there(root: Path) -> bool:
    return (root / EVICT_FOLDER).exists() and bool(rooms(root))


def test_an_engine_that_does_not_evict_asks_all_the_same(root: Path) -> None:
    open_lease(root, lease_seconds=5).tick()
    holder = requests(root)
    holder.heard()
    with duties(root, limits=Limits()) as (duty,):
        duty.want_room()
        Heard(duty).until(lambda news: news.room_requests == 1)
    assert holder.heard()


def write(path: Path, size: int = CHUNK) -> bool:
    """As a store does; False if the quota is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb", buffering=0) as file:
            file.write(os.urandom(size))
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno not in (errno.EDQUOT, errno.ENOSPC):
            raise
        return False
    return True


def ask_until_written(root: Path, path: Path, seconds: float = 60.0) -> None:
    """As an engine does whose stores fail."""
    deadline = time.monotonic() + seconds
    while not write(path):
        requests(root).ask()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_quota_that_statvfs_hides_is_kept_by_the_command(tmp_path: Path) -> None:
    with quirk_mount(tmp_path, volume_bytes=10_000 * CHUNK, quota_bytes=101 * CHUNK) as mount:
        shelf = ShelfMaker(mount.path)
        for i in range(100):
            shelf.add(1000 + i, size=CHUNK, real=True)
        daemon = Daemon(mount.path, "--every", "0.05", "--volume-percent", "90")
        try:
            wait_for(lambda: rooms_there(mount.path))
            path = shelf.chunks[0].path
            assert not write(path.with_name("new-1"), 2 * CHUNK)
            ask_until_written(mount.path, path.with_name("new-1"), 60)
            # The first file that goes lets the store succeed: its four threads go on.
            wait_for(lambda: len(gone := shelf.gone()) >= 5 and gone == shelf.oldest(len(gone)))
            assert len(shelf.gone()) <= 10
        finally:
            daemon.process.terminate()
            out, err = daemon.process.communicate(timeout=30)
        assert "stores fail for lack of room" in err and "removed" in out


@pytest.fixture
def btrfs_quota(tmp_path: Path) -> Iterator[Path]:
    """A subvolume that may take 32 MB on a volume of 256."""
    with loop_mount(tmp_path, "btrfs", 256, options="commit=1") as volume:
        shelf = volume / "shelf"
        for line in (
            ["btrfs", "subvolume", "create", str(shelf)],
            ["btrfs", "quota", "enable", str(volume)],
            ["btrfs", "qgroup", "limit", "32M", str(shelf)],
        ):
            try:
                subprocess.run(line, check=True, capture_output=True, timeout=60)
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"no btrfs quotas here: {error}")
        yield shelf


def until_full(shelf: ShelfMaker) -> None:
    folder = shelf.add(5000).path.parent
    for number in range(1000):
        chunk = folder.parent / f"{number % 4096:03x}" / f"{number:03x}{'0' * 61}-g0.kv"
        if not write(chunk):
            return
        used = time.time() - 4000 + number
        os.utime(chunk, (used, used))
    raise AssertionError("the quota was never full")


def store_until_written(root: Path, path: Path) -> int:
    """Failures until a store succeeds, beside an engine's duty with a limit that is never met."""
    failures, deadline = 0, time.monotonic() + 90
    with duties(root, limits=Limits(volume_percent=90)) as (duty,):
        while not write(path):
            duty.want_room()
            failures += 1
            assert time.monotonic() < deadline, duty.take()
            time.sleep(0.2)
    return failures


@pytest.mark.slow
def test_a_btrfs_quota_group_is_kept(btrfs_quota: Path) -> None:
    shelf = ShelfMaker(btrfs_quota)
    until_full(shelf)
    before = sum(1 for _ in btrfs_quota.rglob("*.kv"))
    assert store_until_written(btrfs_quota, shelf.chunks[0].path.with_name("new")) > 0
    left = sum(1 for _ in btrfs_quota.rglob("*.kv"))
    assert 0.85 * before <= left < before


def test_a_volume_that_others_have_filled_keeps_the_shelfs_floor(tmp_path: Path) -> None:
    """Stores fail there too, but the volume says itself that it is full."""
    size = 100 << 20
    with quirk_mount(tmp_path, volume_bytes=size, other_bytes=size - (2 << 20)) as mount:
        shelf = ShelfMaker(mount.path / "shelf")
        for i in range(100):
            shelf.add(1000 + i)
        evictor = Evictor(shelf.root, Limits(volume_percent=90, keep_percent=10))
        for _ in range(5):
            evictor.wants_room()
            assert not evictor.step().removed
        evictor.close()
        assert not shelf.gone()
