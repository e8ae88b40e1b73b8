"""A shelf over several roots, through its public face."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf import Chunk, ConfigError, EngineConfig, FileStatus, Identity, Phase, Shelf, make_key
from kvshelf.disk.root import is_shelf
from kvshelf.disk.usetime import marked
from kvshelf.engine import JobKind

OK, NOT_FOUND, IO_ERROR = FileStatus.OK, FileStatus.NOT_FOUND, FileStatus.IO_ERROR
IDENTITY = Identity({"model": "demo"})
CONFIG = EngineConfig(io_threads=4, load_only_threads=2, lookup_threads=4)
COUNT = 40
KEYS = [make_key(bytes([i]) * 32, 0) for i in range(COUNT)]


def open_shelf(roots: Any, blocks: Any) -> Shelf:
    return Shelf.of_arrays(roots, IDENTITY, blocks, config=CONFIG)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    return [tmp_path / "a", tmp_path / "b"]


@pytest.fixture
def blocks() -> Any:
    return np.random.default_rng(3).integers(0, 255, (2 * COUNT, 4096), dtype=np.uint8)


@pytest.fixture
def shelf(roots: list[Path], blocks: Any) -> Iterator[Shelf]:
    with open_shelf(roots, blocks) as made:
        assert set(made.store([Chunk(key, [i]) for i, key in enumerate(KEYS)])) == {OK}
        yield made


def loads() -> list[Chunk]:
    return [Chunk(key, [COUNT + i]) for i, key in enumerate(KEYS)]


def test_each_root_is_a_shelf_with_its_share(shelf: Shelf, roots: list[Path]) -> None:
    assert shelf.roots == tuple(map(str, roots)) and all(map(is_shelf, roots))
    for key in KEYS:
        there = [root / shelf.path_of(key) for root in roots]
        assert [path.exists() for path in there] == [shelf.root_of(key) == i for i in range(2)]
    shares = shelf.shares(KEYS, [COUNT])
    assert sorted(key for share in shares for key in share.keys) == sorted(KEYS)
    assert all(shelf.root_of(key) == share.root for share in shares for key in share.keys)


def test_another_shelf_finds_all_whatever_the_order(
    shelf: Shelf, roots: list[Path], blocks: Any
) -> None:
    target = np.zeros_like(blocks)
    with open_shelf([str(roots[1]), roots[0]], target) as other:
        assert set(other.lookup(KEYS)) == {OK}
        assert set(other.load(loads())) == {OK}
    assert (target[COUNT:] == blocks[:COUNT]).all()


def test_a_root_that_is_emptied_is_a_miss_for_its_share(
    shelf: Shelf, roots: list[Path], blocks: Any
) -> None:
    folder = roots[1] / shelf.folder
    for path in folder.rglob("*.kv"):
        path.unlink()
    wanted = [NOT_FOUND if shelf.root_of(key) == 1 else OK for key in KEYS]
    assert 5 < wanted.count(OK) < COUNT - 5
    assert shelf.lookup(KEYS) == wanted
    assert shelf.load(loads()) == wanted
    good = [i for i, status in enumerate(wanted) if status is OK]
    assert (blocks[COUNT:][good] == blocks[good]).all()
    assert set(shelf.store([Chunk(key, [i]) for i, key in enumerate(KEYS)])) == {OK}
    assert set(shelf.lookup(KEYS)) == {OK}


def test_a_root_that_is_added_takes_its_share_and_the_rest_is_found(
    shelf: Shelf, roots: list[Path], blocks: Any, tmp_path: Path
) -> None:
    with open_shelf([*roots, tmp_path / "c"], blocks) as grown:
        found = grown.lookup(KEYS)
        assert found == [NOT_FOUND if grown.root_of(key) == 2 else OK for key in KEYS]
        assert NOT_FOUND in found and OK in found


def test_each_root_has_a_clock_of_its_own(shelf: Shelf, roots: list[Path]) -> None:
    now_ns, hour_ns = time.time_ns(), 3600 * 10**9
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    shelf.set_clock(1, now_ns - hour_ns - boot_ns)
    shelf.touch_at(KEYS, [now_ns] * COUNT, always=True)
    assert shelf.drain(10)
    for key in KEYS:
        root = shelf.root_of(key)
        found = (roots[root] / shelf.path_of(key)).stat().st_mtime_ns
        assert abs(now_ns - root * hour_ns - found) < 10**9


def test_touches_reach_the_files_of_both(shelf: Shelf, roots: list[Path]) -> None:
    paths = [roots[shelf.root_of(key)] / shelf.path_of(key) for key in KEYS]
    wanted = [time.time_ns() - i * 10**9 for i in range(COUNT)]
    shelf.touch_at(KEYS, wanted, always=True)
    assert shelf.drain(10)
    assert [path.stat().st_mtime_ns for path in paths] == [marked(t, reused=False) for t in wanted]


@pytest.mark.parametrize("root", [0, 1])
def test_a_ping_asks_one_root(shelf: Shelf, root: int) -> None:
    asked: list[int] = []
    for index, engine in enumerate(shelf._engines):
        submit = engine.submit_probe

        def note(*args: Any, index: int = index, submit: Any = submit) -> None:
            asked.append(index)
            submit(*args)

        engine.submit_probe = note
    for job in range(8):
        shelf.submit_ping(job, root)
    assert shelf.wait(list(range(8)), Phase.FINISHED, 10)
    reports = shelf.poll()
    assert asked == [root] * 8
    assert [(r.kind, r.statuses) for r in reports] == [(JobKind.PROBE, (NOT_FOUND,))] * 8


def test_both_namespaces_are_in_use_until_the_shelf_is_closed(
    roots: list[Path], blocks: Any
) -> None:
    def are_free() -> list[bool]:
        found = []
        for root in roots:
            with (root / IDENTITY.folder / "namespace.json").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found.append(True)
                except BlockingIOError:
                    found.append(False)
        return found

    shelf = open_shelf(roots, blocks)
    assert are_free() == [False, False]
    shelf.close()  # and not collected: that would end it too
    assert are_free() == [True, True]


def test_a_root_that_cannot_be_used_is_named(roots: list[Path], blocks: Any) -> None:
    roots[1].write_text("a file")
    with pytest.raises(ConfigError, match=rf"shared_storage_path='{roots[1]}'"):
        open_shelf(roots, blocks)


def test_two_names_of_one_directory_are_refused(roots: list[Path], blocks: Any) -> None:
    roots[0].mkdir()
    roots[1].symlink_to(roots[0])
    with pytest.raises(ConfigError, match="only once"):
        open_shelf(roots, blocks)
    with pytest.raises(ConfigError, match="at least"):
        open_shelf([], blocks)
