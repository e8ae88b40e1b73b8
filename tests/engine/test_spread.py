"""The engine over several roots: the conformance suite, and what becomes of one that fails."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kvshelf.disk.keys import make_key
from kvshelf.disk.layout import chunk_path_in
from kvshelf.disk.rendezvous import Rendezvous
from kvshelf.engine import Engine, EngineConfig, FileStatus, JobKind, Phase
from kvshelf.engine.native import NativeEngine
from kvshelf.engine.spread import SpreadEngine, divided
from kvshelf.testing import Blocks, EngineTests, FaultyEngine, FileEngineTests, MemoryEngine, Setup

OK, NOT_FOUND, CANCELLED = FileStatus.OK, FileStatus.NOT_FOUND, FileStatus.CANCELLED
IO_ERROR = FileStatus.IO_ERROR


def two_folders(root: str) -> list[str]:
    roots = [f"{root}/a", f"{root}/b"]
    for each in roots:
        Path(each).mkdir(exist_ok=True)
    return roots


def spread(make: Callable[..., Engine], root: str, *args: Any, **kwargs: Any) -> SpreadEngine:
    return SpreadEngine(two_folders(root), *args, engine=make, **kwargs)


class TestTwoNativeRoots(EngineTests):
    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        return partial(spread, NativeEngine)


class TestTwoNativeRootsOfOneFolder(FileEngineTests):
    """Files are where the suite looks for them, whichever of the two engines made them."""

    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        def make(root: str, *args: Any, **kwargs: Any) -> SpreadEngine:
            def one(_: str, *args: Any, **kwargs: Any) -> Engine:
                return NativeEngine(root, *args, **kwargs)

            return SpreadEngine(["/a", "/b"], *args, engine=one, **kwargs)

        return make


class TestThreeFaultyRoots(EngineTests):
    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        files: dict[str, dict[str, object]] = {"/a": {}, "/b": {}, "/c": {}}

        def one(root: str, *args: Any, **kwargs: Any) -> Engine:
            return FaultyEngine(MemoryEngine(root, *args, files=files[root], **kwargs), {})

        return lambda root, *args, **kwargs: SpreadEngine(list(files), *args, engine=one, **kwargs)


def keys_of(roots: Sequence[str], count: int) -> list[list[bytes]]:
    """``count`` keys of each root."""
    route, found = Rendezvous(roots), [list[bytes]() for _ in roots]
    index = 0
    while min(map(len, found)) < count:
        key = make_key(index.to_bytes(32, "big"), 0)
        found[route.of_key(key)].append(key)
        index += 1
    return [keys[:count] for keys in found]


@pytest.fixture
def setup(tmp_path: Path) -> Any:
    made = Setup(partial(spread, NativeEngine), tmp_path, [Blocks((4096,), 64)], EngineConfig())
    yield made
    assert made.engine.close()


def test_each_file_lies_in_the_root_that_its_name_decides(setup: Setup, tmp_path: Path) -> None:
    roots = two_folders(str(tmp_path))
    rows = [(i, [i], 0) for i in range(40)]
    assert setup.statuses("store", setup.batch(*rows)) == [OK] * 40
    route = Rendezvous(roots)
    for i in range(40):
        there = [root for root in roots if Path(root, setup.path(i)).exists()]
        assert there == [roots[route.of_key(setup.key(i))]]
    assert all(any(Path(root).iterdir()) for root in roots)


def test_a_lookup_with_runs_is_exact_up_to_the_first_missing_key_of_each_root(
    setup: Setup, tmp_path: Path
) -> None:
    """What comes behind it in that root may be left out; answers go back to where keys were."""
    a, b = keys_of(two_folders(str(tmp_path)), 30)
    keys = [key for pair in zip(a, b, strict=True) for key in pair]  # turn by turn
    there = {*a[:20], *b[:6], *b[10:]}
    assert isinstance(setup.engine, SpreadEngine)
    folders = [f"ns/r{rank}" for rank in range(2)]
    for folder in folders:
        rows = setup.batch(*((i, [i], 0) for i in range(len(there))))
        paths = [chunk_path_in(folder, key) for key in there]
        rows = dataclasses.replace(rows, paths=paths, keys=list(there))
        assert set(setup.statuses("store", rows)) == {OK}
    setup.engine.submit_lookup_keys(1, folders, keys, [50])
    assert setup.engine.wait([1], Phase.FINISHED, 20)
    (report,) = setup.engine.poll()
    truth = [OK if key in there else NOT_FOUND for key in keys]
    for rank in range(2):
        said = report.statuses[rank::2]
        ends = {0: 2 * 20, 1: 2 * 6 + 1}  # of each root, the row of its first missing key
        for row, (answer, true) in enumerate(zip(said, truth, strict=True)):
            is_exact = row <= ends[row % 2] or row >= 50
            assert answer is true or (not is_exact and answer is CANCELLED), row


class Held(MemoryEngine):
    """Keeps its reports back until it is told, and hangs in ``wait`` as long as it may."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: set[Phase] = set()
        self.kept: list[Any] = []
        self.waited: list[float] = []
        self.closed_with: list[float] = []

    def poll(self) -> list[Any]:
        reports = [*self.kept, *super().poll()]
        self.kept = [report for report in reports if report.phase in self.held]
        return [report for report in reports if report.phase not in self.held]

    def wait(self, job_ids: Any, phase: Phase, timeout_seconds: float) -> bool:
        self.kept += super().poll()
        if phase not in self.held or not {each.job_id for each in self.kept} & set(job_ids):
            return True
        self.waited.append(timeout_seconds)
        time.sleep(timeout_seconds)
        return False

    def drain(self, timeout_seconds: float) -> bool:
        return not self.held

    def close(self, timeout_seconds: float = 5.0) -> bool:
        self.closed_with.append(timeout_seconds)
        return super().close()


class Pair:
    """A spread engine over two memory engines that a test holds back, and chunks of each."""

    def __init__(self) -> None:
        self.made: dict[str, Held] = {}

        def one(root: str, *args: Any, **kwargs: Any) -> Engine:
            self.made[root] = Held(root, *args, **kwargs)
            return self.made[root]

        def make(_: str, *args: Any, **kwargs: Any) -> SpreadEngine:
            return SpreadEngine(["/a", "/b"], *args, engine=one, **kwargs)

        self.setup = Setup(make, Path("/"), [Blocks((64,), 32)], EngineConfig())
        self.engine = self.setup.engine
        route = Rendezvous(["/a", "/b"])
        index = [[i for i in range(64) if route.of_key(Setup.key(i)) == r] for r in range(2)]
        self.rows = [(i, [row], 0) for row, i in enumerate((index[0][0], index[1][0], index[0][1]))]


def test_a_store_is_released_and_finished_when_all_of_its_parts_are() -> None:
    pair = Pair()
    slow = pair.made["/b"]
    slow.held = {Phase.RELEASED, Phase.FINISHED}
    pair.engine.submit_store(1, pair.setup.batch(*pair.rows))
    assert pair.engine.poll() == [] and not pair.engine.wait([1], Phase.RELEASED, 0.0)
    with pytest.raises(ValueError, match="1"):
        pair.engine.submit_lookup(1, ["ns/a"])
    slow.held = {Phase.FINISHED}
    (released,) = pair.engine.poll()
    assert (released.phase, released.statuses) == (Phase.RELEASED, (OK, OK, OK))
    assert pair.engine.wait([1], Phase.RELEASED, 0.0)
    assert pair.engine.poll() == [] and not pair.engine.wait([1], Phase.FINISHED, 0.0)
    slow.held = set()
    (finished,) = pair.engine.poll()
    assert (finished.phase, finished.payload_bytes) == (Phase.FINISHED, 3 * 64)
    assert pair.setup.statuses("load", pair.setup.batch(*pair.rows)) == [OK] * 3


def test_a_job_in_one_root_does_not_wait_for_the_other() -> None:
    pair = Pair()
    pair.made["/b"].held = {Phase.RELEASED, Phase.FINISHED}
    pair.engine.submit_store(99, pair.setup.batch(pair.rows[1]))
    assert pair.setup.statuses("store", pair.setup.batch(pair.rows[0], pair.rows[2])) == [OK, OK]


def test_what_one_root_refuses_is_given_up_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = Pair()

    def refuse(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(pair.made["/a"], "submit_store", refuse)
    reports = pair.setup.finish("store", pair.setup.batch(*pair.rows))
    assert [report.phase for report in reports] == [Phase.RELEASED, Phase.FINISHED]
    assert [report.statuses for report in reports] == [(CANCELLED, OK, CANCELLED)] * 2
    monkeypatch.setattr(pair.made["/b"], "submit_store", refuse)
    with pytest.raises(RuntimeError, match="no memory"):
        pair.engine.submit_store(7, pair.setup.batch(*pair.rows))
    assert pair.engine.poll() == []
    pair.engine.submit_load(7, pair.setup.batch(*pair.rows))  # the id is free


def test_faults_of_one_root_stay_with_its_files() -> None:
    faults: dict[tuple[JobKind, str], tuple[FileStatus, int]] = {}
    files: dict[str, dict[str, object]] = {"/a": {}, "/b": {}}

    def one(root: str, *args: Any, **kwargs: Any) -> Engine:
        inner = MemoryEngine(root, *args, files=files[root], **kwargs)
        return FaultyEngine(inner, faults if root == "/b" else {})

    def make(_: str, *args: Any, **kwargs: Any) -> SpreadEngine:
        return SpreadEngine(list(files), *args, engine=one, **kwargs)

    setup = Setup(make, Path("/"), [Blocks((64,), 32)], EngineConfig())
    batch = setup.batch(*((i, [i % 32], 0) for i in range(32)))
    assert set(setup.statuses("store", batch)) == {OK}
    for path in batch.paths:
        faults[JobKind.LOAD, path] = IO_ERROR, 5
    (report,) = setup.finish("load", batch)
    bad = Rendezvous(list(files)).of_paths(batch.paths) == 1
    assert 5 < bad.sum() < 27
    assert [status is IO_ERROR for status in report.statuses] == bad.tolist()
    assert report.errnos == tuple(5 * bad)


def test_waiting_and_closing_keep_their_time_though_a_root_hangs() -> None:
    pair = Pair()
    pair.engine.submit_load(1, pair.setup.batch(*pair.rows))
    pair.made["/a"].held = {Phase.FINISHED}
    assert not pair.engine.wait([1], Phase.FINISHED, 0.1)
    assert not pair.engine.drain(0.1)
    start = time.monotonic()
    assert pair.engine.close(0.2)
    assert 0.2 <= time.monotonic() - start < 5
    assert pair.made["/a"].waited == pytest.approx([0.1, 0.2], abs=0.02)
    # Both are closed, when the time is over at once.
    assert [max(each.closed_with) < 0.02 for each in pair.made.values()] == [True, True]


def test_an_engine_that_cannot_be_made_leaves_no_other_open() -> None:
    made: list[Held] = []

    def one(root: str, *args: Any, **kwargs: Any) -> Engine:
        if root == "/b":
            raise OSError("gone")
        made.append(Held(root, *args, **kwargs))
        return made[-1]

    with pytest.raises(OSError, match="gone"):
        SpreadEngine(["/a", "/b"], [], EngineConfig(), engine=one, namespace=bytes(32), rank=0)
    assert made[0].closed_with


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_threads_and_memory_are_divided(parts: int) -> None:
    config = EngineConfig(io_threads=12, load_only_threads=3, lookup_threads=32)
    shares = divided(config, parts)
    assert len(shares) == parts
    assert sum(share.io_threads for share in shares) == max(12, parts)
    assert sum(share.lookup_threads for share in shares) == 32
    assert sum(share.write_buffer_bytes for share in shares) <= config.write_buffer_bytes
    assert min(share.io_threads for share in shares) >= 1
    assert min(share.write_buffer_bytes for share in shares) >= config.piece_bytes
    none = divided(dataclasses.replace(config, load_only_threads=0), parts)
    assert {share.load_only_threads for share in none} == {0}
