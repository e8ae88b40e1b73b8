"""A shelf with several roots of which one is slow, refuses, fails or hangs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from kvshelf import Chunk, Shelf
from kvshelf.engine import Engine, EngineConfig, EngineStats, FileStatus, JobKind, Phase
from kvshelf.engine.config import divided
from kvshelf.testing import Blocks, MemoryEngine
from tests.harness.faulty_engine import FaultyEngine
from tests.unit.sites import IDENTITY, Site

OK, CANCELLED, IO_ERROR = FileStatus.OK, FileStatus.CANCELLED, FileStatus.IO_ERROR


class Held(MemoryEngine):
    """Keeps its reports back until it is told, and hangs in ``wait`` as long as it may."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: set[Phase] = set()
        self.kept: list[Any] = []
        self.waited: list[float] = []
        self.closed_with: list[float] = []
        self.told: list[tuple[str, list[int]]] = []

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

    def release(self, job_ids: Any) -> None:
        self.told.append(("release", job_ids))

    def cancel(self, job_ids: Any) -> None:
        self.told.append(("cancel", job_ids))

    def stats(self) -> EngineStats:
        return EngineStats(touched=len(self.told), queued_loads=1, direct=True)

    def drain(self, timeout_seconds: float) -> bool:
        return not self.held

    def close(self, timeout_seconds: float = 5.0) -> bool:
        self.closed_with.append(timeout_seconds)
        return super().close()


class Pair(Site):
    """Two engines that a test holds back, and chunks of the first, the second, and the first."""

    def __init__(self, folder: Path) -> None:
        self.made: list[Held] = []

        def one(*args: Any, **kwargs: Any) -> Engine:
            self.made.append(Held(*args, **kwargs))
            return self.made[-1]

        super().__init__(folder, memory=[Blocks((64,), 32)], engine=one)
        a, b = self.keys(2)
        self.chunks = [Chunk(key, [row]) for row, key in enumerate((a[0], b[0], a[1]))]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_a_store_is_released_and_finished_when_all_of_its_parts_are(pair: Pair) -> None:
    shelf, slow = pair.shelf, pair.made[1]
    slow.held = {Phase.RELEASED, Phase.FINISHED}
    shelf.submit_store(1, pair.chunks)
    assert shelf.poll() == [] and not shelf.wait([1], Phase.RELEASED, 0.0)
    with pytest.raises(ValueError, match="1 is in use"):
        shelf.submit_lookup(1, [pair.chunks[0].key])
    slow.held = {Phase.FINISHED}
    (released,) = shelf.poll()
    assert (released.phase, released.statuses) == (Phase.RELEASED, (OK, OK, OK))
    assert shelf.wait([1], Phase.RELEASED, 0.0)
    assert shelf.poll() == [] and not shelf.wait([1], Phase.FINISHED, 0.0)
    slow.held = set()
    (finished,) = shelf.poll()
    assert (finished.phase, finished.payload_bytes) == (Phase.FINISHED, 3 * 64)
    assert pair.statuses("load", pair.chunks) == [OK] * 3


def test_an_id_in_use_in_one_root_is_refused_in_the_other(pair: Pair) -> None:
    pair.made[0].held = {Phase.FINISHED}
    pair.shelf.submit_load(5, pair.chunks[:1])
    with pytest.raises(ValueError, match="5 is in use"):
        pair.shelf.submit_load(5, pair.chunks[1:2])
    pair.made[0].held = set()
    assert [report.job_id for report in pair.shelf.poll()] == [5]
    pair.shelf.submit_load(5, pair.chunks[1:2])


def test_a_job_in_one_root_does_not_wait_for_the_other(pair: Pair) -> None:
    pair.made[1].held = {Phase.RELEASED, Phase.FINISHED}
    pair.shelf.submit_store(99, pair.chunks[1:2])
    assert pair.statuses("store", [pair.chunks[0], pair.chunks[2]]) == [OK, OK]


def test_what_one_root_refuses_is_given_up_and_the_rest_is_done(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(pair.made[0], "submit_store", refuse)
    reports = pair.finish("store", pair.chunks)
    assert [report.phase for report in reports] == [Phase.RELEASED, Phase.FINISHED]
    assert [report.statuses for report in reports] == [(CANCELLED, OK, CANCELLED)] * 2
    monkeypatch.setattr(pair.made[1], "submit_store", refuse)
    with pytest.raises(RuntimeError, match="no memory"):
        pair.shelf.submit_store(7, pair.chunks)
    assert pair.shelf.poll() == []
    pair.shelf.submit_load(7, pair.chunks)  # the id is free


def test_faults_of_one_root_stay_with_its_files(tmp_path: Path) -> None:
    faults: dict[tuple[JobKind, str], tuple[FileStatus, int]] = {}

    def one(root: str, *args: Any, **kwargs: Any) -> Engine:
        return FaultyEngine(
            MemoryEngine(root, *args, **kwargs), faults if root.endswith("b") else {}
        )

    site = Site(tmp_path, memory=[Blocks((64,), 32)], engine=one)
    a, b = site.keys(16)
    keys = [key for pair in zip(a, b, strict=True) for key in pair]
    chunks = [Chunk(key, [row]) for row, key in enumerate(keys)]
    assert set(site.statuses("store", chunks)) == {OK}
    for key in keys:
        faults[JobKind.LOAD, site.shelf.path_of(key)] = IO_ERROR, 5
    (report,) = site.finish("load", chunks)
    assert report.statuses == (OK, IO_ERROR) * 16
    assert report.errnos == (0, 5) * 16


def test_what_is_told_of_a_job_reaches_every_root(pair: Pair) -> None:
    pair.shelf.release([3])
    pair.shelf.cancel([3, 4])
    assert [each.told for each in pair.made] == [[("release", [3]), ("cancel", [3, 4])]] * 2
    pair.made[1].told.clear()
    assert pair.shelf.stats() == EngineStats(touched=2, queued_loads=2, direct=True)
    assert pair.shelf.stats_of(1).touched == 0


def test_waiting_and_closing_keep_their_time_though_a_root_hangs(pair: Pair) -> None:
    shelf = pair.shelf
    shelf.submit_load(1, pair.chunks)
    pair.made[0].held = {Phase.FINISHED}
    assert not shelf.wait([1], Phase.FINISHED, 0.1)
    assert not shelf.drain(0.1)
    start = time.monotonic()
    assert shelf.close(0.2)
    assert 0.2 <= time.monotonic() - start < 5
    assert pair.made[0].waited == pytest.approx([0.1, 0.2], abs=0.02)
    # Both are told to give the job up, and closed, when the time is over at once.
    assert [each.told for each in pair.made] == [[("cancel", [1])]] * 2
    assert [max(each.closed_with) < 0.02 for each in pair.made] == [True, True]


def test_an_engine_that_cannot_be_made_leaves_no_other_open(tmp_path: Path) -> None:
    made: list[Held] = []

    def one(root: str, *args: Any, **kwargs: Any) -> Engine:
        if root.endswith("b"):
            raise OSError("gone")
        made.append(Held(root, *args, **kwargs))
        return made[-1]

    with pytest.raises(OSError, match="gone"):
        Shelf([tmp_path / "a", tmp_path / "b"], IDENTITY, engine=one)
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
    assert divided(config, 1) == [config]
