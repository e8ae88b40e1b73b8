"""An age purge beside a living shelf: documents and folders come again, and eviction goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, Shelf, make_key
from kvshelf.disk.clock import FileClock
from kvshelf.disk.keeper import RootKeeper
from kvshelf.disk.root import is_shelf, open_root
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict import duty as duty_module
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle

IDENTITY = Identity({"model": "tiny"})
BLOCKS = np.random.default_rng(1).integers(0, 256, (8, 4096), dtype=np.uint8)
CONFIG = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=2)
LIMIT = 40 * 4096 * 3


def eventually(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Site:
    """A shelf that stores and loads, its engine's duty, and an evictor of its own process."""

    def __init__(self, root: Path) -> None:
        self.root, self.stored = root, 0
        self.blocks = BLOCKS.copy()
        self.shelf = Shelf.of_arrays(root, IDENTITY, self.blocks, config=CONFIG)
        self.duty = EvictionDuty(
            root,
            IDENTITY.folder,
            limits=Limits(shelf_bytes=LIMIT),
            lease_seconds=1.0,
            renew=lambda: self.shelf.renew_use(str(root)),
        )
        self.duty.start()
        line = [sys.executable, "-m", "kvshelf.cli", "evict", str(root), "--lease", "1"]
        self.daemon = subprocess.Popen(
            [*line, "--every", "0.1", "--shelf-limit", str(LIMIT)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def store_and_load(self) -> None:
        """More than the limit, so that eviction must work."""
        for _ in range(30):
            self.stored += 1
            key = make_key(self.stored.to_bytes(2, "big") * 16, 0)
            assert self.shelf.store([Chunk(key, range(3))]) == [FileStatus.OK]
            self.blocks[3:6] = 0
            status = self.shelf.load([Chunk(key, range(3, 6))])
            if status == [FileStatus.OK]:  # a purge or an evictor may be faster
                assert (self.blocks[3:6] == BLOCKS[:3]).all()
            else:
                assert status == [FileStatus.NOT_FOUND]

    def is_whole(self) -> bool:
        files = ("kvshelf.json", f"{IDENTITY.folder}/namespace.json")
        return all((self.root / name).is_file() for name in files)

    def is_within(self) -> bool:
        try:
            return sum(path.stat().st_size for path in self.root.rglob("*.kv")) <= LIMIT
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self.duty.close(10)
        self.shelf.close()
        self.daemon.terminate()
        self.daemon.communicate(timeout=20)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(duty_module, "WAKE_SECONDS", 0.05)
    monkeypatch.setattr(duty_module, "RENEW_SECONDS", 0.1)
    site = Site(tmp_path / "shelf")
    try:
        yield site
    finally:
        site.close()


def remove(root: Path, what: str) -> None:
    for path in list(root.glob(what)):
        with contextlib.suppress(FileNotFoundError):  # a lease is renamed all the time
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


PURGES = [
    ["kvshelf.json"],
    ["*/namespace.json"],
    ["kvshelf.json", "*/namespace.json"],
    ["evict/*"],
    ["evict"],
    ["removed"],
    ["kvshelf.json", "evict", "removed"],
    ["*/tmp"],
    ["*/r0"],
    ["*/r0/*"],
    ["*-*"],
    ["*"],
]


@pytest.mark.slow
def test_every_part_in_turn_beside_engine_and_evictor(site: Site) -> None:
    site.store_and_load()
    eventually(lambda: site.is_within() and (site.root / "evict").is_dir())
    for names in PURGES:
        for name in names:
            remove(site.root, name)
        site.store_and_load()
        eventually(site.is_whole)
        eventually(site.is_within)
        eventually(lambda: any((site.root / "evict").glob("lease-*")))
        assert site.daemon.poll() is None
    # Another engine finds a shelf, and what is stored.
    remove(site.root, "kvshelf.json")
    with Shelf.of_arrays(site.root, IDENTITY, BLOCKS.copy(), config=CONFIG):
        pass


def test_an_evictor_alone_makes_the_marker_again(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(20):
        shelf.add(1000 + i)
    evictor = Evictor(tmp_path, Limits(shelf_bytes=10 * CHUNK_BYTES))
    (tmp_path / "kvshelf.json").unlink()
    assert settle(evictor).removed.files == 11
    assert is_shelf(tmp_path)
    dry = Evictor(tmp_path, Limits(shelf_bytes=10 * CHUNK_BYTES), dry_run=True)
    (tmp_path / "kvshelf.json").unlink()
    with pytest.raises(FileNotFoundError):
        dry.step()


def test_another_directory_gets_no_marker(tmp_path: Path) -> None:
    """As a mount point whose file system is away."""
    root = open_root(tmp_path / "shelf")
    keeper, evictor = RootKeeper(root), Evictor(root, Limits(shelf_bytes=1))
    root.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        keeper.keep()
    root.mkdir()
    assert not keeper.keep()
    with pytest.raises((FileNotFoundError, NotAShelfError)):
        evictor.step()
    with pytest.raises(FileNotFoundError):
        RootKeeper(root)
    assert list(root.iterdir()) == []
    # Even if a link leads there.
    root.rmdir()
    (tmp_path / "other").mkdir()
    root.symlink_to(tmp_path / "other")
    assert not keeper.keep() and list((tmp_path / "other").iterdir()) == []


def test_a_shelf_at_the_path_is_followed(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    keeper = RootKeeper(root)
    root.rename(tmp_path / "away")
    open_root(root)
    keeper.follow()
    (root / "kvshelf.json").unlink()
    assert keeper.keep() and is_shelf(root)
    keeper.close()
    keeper.close()


def test_a_marker_that_is_something_else_stays(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    keeper = RootKeeper(root)
    (root / "kvshelf.json").unlink()
    (root / "kvshelf.json").symlink_to("nowhere")
    assert not keeper.keep()
    assert str((root / "kvshelf.json").readlink()) == "nowhere"


def test_a_namespace_that_is_whole_again_is_soon_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root's time does not tell: only the namespace's folder changes."""
    from kvshelf.upkeep.evict import spaces as module

    shelf = ShelfMaker(tmp_path)
    os.utime(tmp_path, (1e9, 1e9))
    now = [1.5e9]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    spaces = module.Spaces(tmp_path, FileClock(tmp_path))
    assert spaces.list() == shelf.folders
    document = tmp_path / shelf.folders[0] / "namespace.json"
    content = document.read_bytes()
    document.unlink()
    now[0] += 61
    assert spaces.list() == []
    document.write_bytes(content)
    now[0] += 6
    assert spaces.list() == shelf.folders
