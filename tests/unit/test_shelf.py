"""A shelf over NumPy memory: keys to files and back, through the native engine and others."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf import (
    Chunk,
    ConfigError,
    EngineClosedError,
    EngineConfig,
    FileStatus,
    GroupMemory,
    Identity,
    NotAShelfError,
    Pages,
    Phase,
    Shelf,
    make_key,
)
from kvshelf.disk.layout import parse_chunk_path
from kvshelf.engine import Engine, JobKind, JobResult
from kvshelf.testing.memory_engine import MemoryEngine

OK, NOT_FOUND = FileStatus.OK, FileStatus.NOT_FOUND
IDENTITY = Identity({"model": "demo", "dtype": "float32"})
CONFIG = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=2)


def key(number: int, group: int = 0) -> bytes:
    return make_key(bytes([number]) * 32, group)


def blocks(count: int = 16, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random((count, 3, 257), dtype=np.float32)


def open_shelf(root: Path, arrays: Any, **options: Any) -> Shelf:
    return Shelf.of_arrays(root, IDENTITY, arrays, config=CONFIG, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


def test_arrays_come_back_from_another_shelf(root: Path) -> None:
    source, target = blocks(), np.zeros_like(blocks())
    with open_shelf(root, source) as shelf:
        assert shelf.lookup([key(1)]) == [NOT_FOUND]
        chunks = [Chunk(key(1), range(4)), Chunk(key(2), np.array([9, 4], dtype=np.int64))]
        assert shelf.store(chunks) == [OK, OK]
        assert shelf.lookup([key(3), key(2), key(1)]) == [NOT_FOUND, OK, OK]
    with open_shelf(root, target) as shelf:
        wanted = [Chunk(key(1), [8, 7, 6, 5]), Chunk(key(2), np.array([0], np.int32), 1)]
        assert shelf.load(wanted) == [OK, OK]
    np.testing.assert_array_equal(target[[8, 7, 6, 5, 0]], source[[0, 1, 2, 3, 4]])
    assert not target[[1, 2, 3, 4, *range(9, 16)]].any()


def test_a_file_lies_where_path_of_says(root: Path) -> None:
    with open_shelf(root, blocks(), rank=2, world_size=3) as shelf:
        shelf.store([Chunk(key(1), range(2))])
        path = shelf.path_of(key(1))
        assert (root / path).is_file()
        name = parse_chunk_path(path)
        assert name is not None
        assert (name.folder, name.rank, name.key) == (IDENTITY.folder, 2, key(1))


def test_a_lookup_needs_the_files_of_every_rank(root: Path) -> None:
    workers = [open_shelf(root, blocks(seed=r), rank=r, world_size=2) for r in range(2)]
    with Shelf(root, IDENTITY, world_size=2, config=CONFIG) as scheduler:
        workers[0].store([Chunk(key(1), [0]), Chunk(key(2), [1])])
        assert scheduler.lookup([key(1), key(2), key(3)]) == [NOT_FOUND] * 3
        workers[1].store([Chunk(key(2), [1]), Chunk(key(3), [2])])
        assert scheduler.lookup([key(1), key(2), key(3)]) == [NOT_FOUND, OK, NOT_FOUND]
    for worker in workers:
        assert worker.close()


def test_ranks_do_not_load_each_others_files(root: Path) -> None:
    with open_shelf(root, blocks(), rank=0, world_size=2) as first:
        first.store([Chunk(key(1), [0])])
    with open_shelf(root, blocks(), rank=1, world_size=2) as second:
        assert second.load([Chunk(key(1), [0])]) == [NOT_FOUND]


def test_groups_have_memory_of_their_own(root: Path) -> None:
    attention = [blocks(8, 1), blocks(8, 2)]
    window = [np.arange(40, dtype=np.int64).reshape(8, 5)]
    with open_shelf(root, [attention, window], group_ids=[3, 1]) as shelf:
        stored = [Chunk(key(1, 3), [0, 1]), Chunk(key(1, 1), [2, 3])]
        assert shelf.store(stored) == [OK, OK]
        expected = [layer[[0, 1]].copy() for layer in attention], window[0][[2, 3]].copy()
        for layer in (*attention, *window):
            layer[:4] = 0
        assert shelf.load([Chunk(key(1, 3), [6, 7]), Chunk(key(1, 1), [4, 5])]) == [OK, OK]
        for layer, before in zip(attention, expected[0], strict=True):
            np.testing.assert_array_equal(layer[[6, 7]], before)
        np.testing.assert_array_equal(window[0][[4, 5]], expected[1])
        with pytest.raises(ValueError, match="group"):
            shelf.store([Chunk(key(1, 0), [0])])  # no group has this id


def test_blocks_may_lie_apart(root: Path) -> None:
    whole = blocks(8)
    layer = whole[:, 1]  # blocks of one layer within memory of three
    with open_shelf(root, layer) as shelf:
        before = whole.copy()
        shelf.store([Chunk(key(1), [0])])
        assert shelf.load([Chunk(key(1), [7])]) == [OK]
    before[7, 1] = before[0, 1]
    np.testing.assert_array_equal(whole, before)


def test_another_identity_finds_nothing(root: Path) -> None:
    with open_shelf(root, blocks()) as shelf:
        shelf.store([Chunk(key(1), [0])])
    other = Identity({**IDENTITY.fields, "dtype": "float16"})
    with Shelf.of_arrays(root, other, blocks(), config=CONFIG) as shelf:
        assert shelf.lookup([key(1)]) == [NOT_FOUND]


def test_a_damaged_file_is_reported_and_removed(root: Path) -> None:
    with open_shelf(root, blocks()) as shelf:
        shelf.store([Chunk(key(1), [0]), Chunk(key(2), [1])])
        path = root / shelf.path_of(key(1))
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        path.write_bytes(data)
        wanted = [Chunk(key(1), [2]), Chunk(key(2), [3])]
        assert shelf.load(wanted) == [FileStatus.CORRUPT, OK]
        assert not path.exists() and shelf.stats().removed_bad == 1


def test_touch_renews_the_files_of_this_rank_or_of_all(root: Path) -> None:
    workers = [open_shelf(root, blocks(), rank=r, world_size=2) for r in range(2)]
    scheduler = Shelf(root, IDENTITY, world_size=2, config=CONFIG)
    files = [root / worker.path_of(key(1)) for worker in workers]
    for toucher, touched in ((workers[1], [False, True]), (scheduler, [True, True])):
        for worker, file in zip(workers, files, strict=True):
            worker.store([Chunk(key(1), [0])])
            file.touch()
            os.utime(file, (1000, 1000))
        toucher.touch([key(1)])
        assert toucher.drain(10)
        assert [file.stat().st_mtime > 1000 for file in files] == touched
        assert [file.stat().st_atime > 1000 for file in files] == touched
    for shelf in (*workers, scheduler):
        assert shelf.close()


def test_jobs_of_ones_own_are_polled(root: Path) -> None:
    with open_shelf(root, blocks()) as shelf:
        shelf.submit_store(7, [Chunk(key(1), [0])])
        assert shelf.wait([7], Phase.FINISHED, 10)
        released, finished = shelf.poll()
        assert (released.phase, finished.phase) == (Phase.RELEASED, Phase.FINISHED)
        shelf.submit_load(8, [Chunk(key(1), [1])])
        shelf.submit_lookup(9, [key(1), key(2)])
        assert shelf.drain(10)
        reports = {report.job_id: report for report in shelf.poll()}
        assert reports[8].statuses == (OK,) and reports[9].statuses == (OK, NOT_FOUND)
        assert shelf.poll() == []
        shelf.release([7])
        shelf.cancel([7])


def test_nothing_to_do_is_done(root: Path) -> None:
    with open_shelf(root, blocks()) as shelf:
        assert shelf.store([]) == shelf.load([]) == shelf.lookup([]) == []


def test_a_closed_shelf_refuses_work(root: Path) -> None:
    with open_shelf(root, blocks()) as shelf:
        pass
    assert shelf.close()
    for call in (
        lambda: shelf.store([Chunk(key(1), [0])]),
        lambda: shelf.load([Chunk(key(1), [0])]),
        lambda: shelf.lookup([key(1)]),
        lambda: shelf.touch([key(1)]),
    ):
        with pytest.raises(EngineClosedError):
            call()


def test_the_context_manager_closes_on_an_error(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_shelf(root, blocks()) as shelf:
        raise ZeroDivisionError
    with pytest.raises(EngineClosedError):
        shelf.lookup([key(1)])


@pytest.mark.parametrize(
    "ids",
    [[16], [-1], [2**31], [2**32], np.array([2**32]), [0.5], ["0"], [None], [], [[0]]],
    ids=str,
)
def test_impossible_block_ids_are_refused(root: Path, ids: Any) -> None:
    with open_shelf(root, blocks()) as shelf:
        for call in (shelf.store, shelf.load):
            with pytest.raises(ValueError):
                call([Chunk(key(1), ids)])
        assert shelf.lookup([key(1)]) == [NOT_FOUND]


@pytest.mark.parametrize("bad", [b"", b"1234", b"x" * 4, b"x" * 11, b"x" * 129])
def test_impossible_keys_are_refused(root: Path, bad: bytes) -> None:
    with open_shelf(root, blocks()) as shelf, pytest.raises(ValueError):
        shelf.store([Chunk(bad, [0])])


def test_without_block_memory_nothing_is_moved(root: Path) -> None:
    with Shelf(root, IDENTITY, config=CONFIG) as shelf, pytest.raises(ValueError, match="group"):
        shelf.load([Chunk(key(1), [0])])


def read_only() -> np.ndarray[Any, Any]:
    array = blocks()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "arrays",
    [
        np.zeros((0, 4)),
        np.zeros((4, 0)),
        np.array(5.0),
        np.zeros((4, 6))[:, ::2],
        np.zeros((4, 6)).T,
        np.zeros((4, 6))[::-1],
        np.lib.stride_tricks.as_strided(np.zeros(8), (4, 4), (8, 8)),
        np.broadcast_to(np.zeros(4), (4, 4)),
        np.array([[object()]]),
        read_only(),
        [blocks(), blocks()],
        [[]],
        [[blocks()], []],
    ],
    ids=range(13),
)
def test_impossible_memory_is_refused(root: Path, arrays: Any) -> None:
    with pytest.raises(ValueError):
        open_shelf(root, arrays)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": -1},
        {"rank": 1},
        {"world_size": 0},
        {"group_ids": []},
        {"group_ids": [0, 1]},
        {"device": "tpu"},
    ],
    ids=str,
)
def test_impossible_options_are_refused(root: Path, options: Any) -> None:
    with pytest.raises(ValueError):
        open_shelf(root, blocks(), **options)
    if "group_ids" in options:
        with pytest.raises(ValueError, match="each its own"):
            open_shelf(root, [[blocks()], [blocks()]], group_ids=[1, 1])


def test_a_root_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("precious")
    with pytest.raises(NotAShelfError):
        open_shelf(tmp_path, blocks())
    with pytest.raises(ConfigError):
        open_shelf(Path("relative"), blocks())


def test_permissions_of_the_configuration_reach_root_and_namespace(root: Path) -> None:
    config = dataclasses.replace(CONFIG, file_mode=0o600, dir_mode=0o700)
    Shelf(root, IDENTITY, config=config).close()
    for path in (root, root / IDENTITY.folder):
        assert path.stat().st_mode & 0o777 == 0o700
    for path in (root / "kvshelf.json", root / IDENTITY.folder / "namespace.json"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_any_engine_will_do(root: Path) -> None:
    source = blocks()
    with open_shelf(root, source, engine=MemoryEngine) as shelf:
        assert shelf.store([Chunk(key(1), [0])]) == [OK]
        assert shelf.load([Chunk(key(1), [1])]) == [OK]
    np.testing.assert_array_equal(source[0], source[1])
    assert not list((root / IDENTITY.folder).rglob("*.kv"))


class OneReport(MemoryEngine):
    """An engine that answers a lookup with what the test wants."""

    reports: tuple[JobResult, ...] = ()

    def poll(self) -> list[JobResult]:
        return list(self.reports)


@pytest.mark.parametrize(
    ("statuses", "errnos", "expected"),
    [
        ("OK OK", (0, 0), (OK, 0)),
        ("OK NOT_FOUND", (0, 0), (NOT_FOUND, 0)),
        ("TIMED_OUT NOT_FOUND", (0, 0), (NOT_FOUND, 0)),
        ("IO_ERROR NOT_FOUND", (5, 0), (NOT_FOUND, 0)),
        ("OK IO_ERROR", (0, 5), (FileStatus.IO_ERROR, 5)),
        ("TIMED_OUT OK", (0, 0), (FileStatus.TIMED_OUT, 0)),
    ],
)
def test_what_ranks_say_becomes_one_answer(
    root: Path, statuses: str, errnos: tuple[int, ...], expected: tuple[FileStatus, int]
) -> None:
    found = tuple(FileStatus[name] for name in statuses.split())
    report = JobResult(1, JobKind.LOOKUP, Phase.FINISHED, found * 2, errnos * 2, 0, 0.1)
    probe = dataclasses.replace(report, job_id=2, kind=JobKind.PROBE)
    with Shelf(root, IDENTITY, world_size=2, config=CONFIG, engine=OneReport) as shelf:
        shelf.submit_lookup(1, [key(1), key(2)])
        shelf.submit_probe(2, [key(1), key(2)], 0)
        OneReport.reports = (report, probe)
        reduced, untouched = shelf.poll()
    assert reduced.statuses == (expected[0],) * 2 and reduced.errnos == (expected[1],) * 2
    assert untouched == probe


def test_block_memory_outlives_the_engine(root: Path) -> None:
    gone: list[str] = []

    class Owner:
        def __del__(self) -> None:
            gone.append("memory")

    class LoudEngine(MemoryEngine):
        def __del__(self) -> None:
            gone.append("engine")

    shelf = Shelf(root, IDENTITY, config=CONFIG, engine=LoudEngine, keep_alive=Owner())
    del shelf
    gc.collect()
    assert gone == ["engine", "memory"]


@pytest.fixture
def silent_engine() -> Iterator[Any]:
    class Silent(MemoryEngine):
        def poll(self) -> list[JobResult]:
            return []

    yield Silent


def test_an_engine_that_says_nothing_is_an_error(root: Path, silent_engine: Any) -> None:
    with (
        Shelf(root, IDENTITY, config=CONFIG, engine=silent_engine) as shelf,
        pytest.raises(TimeoutError, match="did not report"),
    ):
        shelf.lookup([key(1)])


class Sink:
    """An engine that takes a store and does nothing, to time what comes before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def submit_store(self, job_id: int, batch: Any, stream: int) -> None:
        self.batch = batch

    def set_clock(self, ahead_ns: int) -> None: ...


def test_a_job_of_64_chunks_is_made_fast(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark, not a check: the goal is 0.4 ms, but this machine may be busy."""
    engine: type[Engine] = Sink  # type: ignore[assignment]
    memory = GroupMemory((Pages(4096, 4096, 4096),), 64 * 16)
    shelf = Shelf(root, IDENTITY, groups=[memory], config=CONFIG, engine=engine)
    ids = np.arange(64 * 16, dtype=np.int32).reshape(64, 16)
    chunks = [Chunk(key(i), ids[i]) for i in range(64)]
    seconds = []
    for job in range(200):
        start = time.perf_counter()
        shelf.submit_store(job, chunks)
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        sys.stdout.write(f"\n64 chunks of 16 blocks: {min(seconds) * 1e3:.3f} ms (goal: 0.4)\n")
