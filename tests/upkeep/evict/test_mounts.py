"""No hot chunk goes, however the file system keeps access times: kvshelf sets them itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.disk.layout import chunk_path
from kvshelf.disk.usetime import marked
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.policy import REUSED_FACTOR
from tests.harness.loop_mount import loop_mount
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle


@pytest.fixture(params=["relatime", "noatime", "strictatime"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of 64 MB, mounted so."""
    with loop_mount(tmp_path, "ext4", 64, mkfs=("-m", "0"), options=request.param) as folder:
        yield folder


def test_hot_chunks_stay(mount: Path) -> None:
    """Half of the oldest are touched as engines do it; the others are only read, by anybody."""
    from kvshelf.engine import EngineConfig
    from kvshelf.engine.native import NativeEngine

    shelf = ShelfMaker(mount / "shelf")
    chunks = [shelf.add(90_000 - i, real=True) for i in range(300)]
    hot = {chunk.path for chunk in chunks[:100]}
    engine = NativeEngine(
        shelf.root, [], EngineConfig(touch_interval_seconds=0), namespace=b"n" * 32, rank=0
    )
    engine.touch([chunk_path(shelf.folders[0], 0, chunk.key) for chunk in chunks[:100]])
    assert engine.drain(30)
    deadline = time.monotonic() + 30
    while engine.stats().touched < 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    engine.close()
    settle(Evictor(shelf.root, Limits(shelf_bytes=150 * CHUNK_BYTES, low_percent=100)))
    gone = shelf.gone()
    assert len(gone) == 150 and not gone & hot
    assert gone == {chunk.path for chunk in chunks[100:250]}


def test_percent_of_bytes_and_of_inodes(mount: Path) -> None:
    """Real blocks and inodes, and the file system's own count of them."""
    shelf = ShelfMaker(mount / "shelf")
    for i in range(200):
        shelf.add(1000 + i, size=100 << 10, real=True)
    found = os.statvfs(mount)
    used = (
        100 * (found.f_blocks - found.f_bfree) / (found.f_blocks - found.f_bfree + found.f_bavail)
    )
    report = settle(
        Evictor(mount / "shelf", Limits(volume_percent=used - 1, low_percent=75, keep_percent=0))
    )
    volume = report.volume
    low = (used - 1) * 0.75 / 100 * volume.total_bytes
    assert shelf.gone() == shelf.oldest(len(shelf.gone()))
    assert low - 0.005 * volume.total_bytes <= volume.used_bytes <= low
    inodes = 100 * volume.used_inodes / volume.total_inodes
    report = settle(
        Evictor(
            mount / "shelf", Limits(inode_percent=inodes - 0.01, low_percent=95, keep_percent=0)
        )
    )
    low_inodes = (inodes - 0.01) * 0.95 / 100 * volume.total_inodes
    assert low_inodes - 2 <= report.volume.used_inodes <= low_inodes
    assert shelf.gone() == shelf.oldest(len(shelf.gone()))


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_reader_of_the_whole_shelf_changes_nothing(mount: Path, rounds: int) -> None:
    """A backup or a virus scanner; classes of chunks, used again or not, stay as well."""
    shelf = ShelfMaker(mount / "shelf")
    expected = {}
    for i in range(200):
        age, reused = 1000.0 + 40 * (i * 77 % 200), i % 3 == 0
        chunk = shelf.add(age, real=True)
        time_ns = marked(int(1e9 * chunk.used_at), reused=reused)
        os.utime(chunk.path, ns=(time_ns, time_ns))
        expected[chunk.path] = age / (REUSED_FACTOR if reused else 1)
    before = [chunk.path.stat().st_atime_ns for chunk in shelf.chunks]
    for _ in range(rounds):
        for chunk in shelf.chunks:
            assert chunk.path.read_bytes()
    renewed = [chunk.path.stat().st_atime_ns for chunk in shelf.chunks] != before
    assert renewed != ("noatime" in _options(mount))
    settle(Evictor(shelf.root, Limits(shelf_bytes=120 * CHUNK_BYTES, low_percent=100)))
    assert shelf.gone() == set(sorted(expected, key=lambda path: -expected[path])[:80])


def _options(mount: Path) -> str:
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return next(options for _, at, _, options, *_ in lines if at == str(mount))
