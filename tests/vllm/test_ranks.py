"""Engines of several ranks: a chunk is there when each of them has published its file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf import Chunk, EngineConfig, Shelf  # noqa: E402
from kvshelf.engine import Phase  # noqa: E402
from kvshelf.faultlog import FaultLog  # noqa: E402
from kvshelf.vllm.report import WorkerReport  # noqa: E402
from kvshelf.vllm.scheduler import manager as manager_module  # noqa: E402
from kvshelf.vllm.scheduler.chunk_table import ChunkTable  # noqa: E402
from kvshelf.vllm.scheduler.manager import KvshelfManager  # noqa: E402
from kvshelf.vllm.worker.outcomes import Outcomes  # noqa: E402

from .test_adapter import CONTEXT, IDENTITY, SETTINGS, STEP_END, key  # noqa: E402

A, B = key(1), key(2)
FIRST, SECOND = 1 << 0, 1 << 1


@pytest.fixture
def table() -> ChunkTable:
    """Of two ranks."""
    return ChunkTable(
        hit_ttl_seconds=9, miss_ttl_seconds=0, failed_ttl_seconds=9, keys_max=9, num_workers=2
    )


@pytest.fixture
def manager(tmp_path: Path, table: ChunkTable) -> Iterator[KvshelfManager]:
    made = KvshelfManager(
        Shelf(tmp_path, IDENTITY, world_size=2),
        table,
        SETTINGS,
        chunk_bytes=1,
        chunk_tokens=16,
        emit_events=True,
    )
    yield made
    made.shutdown()


def test_a_chunk_that_one_rank_lacks_is_not_served(
    manager: KvshelfManager, table: ChunkTable
) -> None:
    manager.prepare_store([A], CONTEXT)
    manager.absorb(WorkerReport(published={A: FIRST}))
    assert list(manager.take_events()) == []
    assert table.answer(A) is None
    manager.absorb(WorkerReport(published={A: SECOND}))
    assert [list(e.keys) for e in manager.take_events()] == [[A]]


def test_a_rank_that_says_it_twice_is_not_two(manager: KvshelfManager, table: ChunkTable) -> None:
    """The second rank dropped it, so it is stored anew: the first had it, and still has."""
    manager.prepare_store([A], CONTEXT)
    manager.absorb(WorkerReport(not_stored={A}))
    assert list(manager.prepare_store([A], CONTEXT).keys_to_store) == [A]
    for _ in range(2):
        manager.absorb(WorkerReport(published={A: FIRST}))
        assert list(manager.take_events()) == []
        assert table.answer(A) is None
    manager.absorb(WorkerReport(published={A: SECOND}))
    assert [list(e.keys) for e in manager.take_events()] == [[A]]


def test_reports_of_ranks_are_joined(manager: KvshelfManager) -> None:
    joined = WorkerReport(published={A: FIRST}).merge(WorkerReport(published={A: SECOND, B: FIRST}))
    assert joined.published == {A: FIRST | SECOND, B: FIRST}
    manager.absorb(joined)
    assert [list(e.keys) for e in manager.take_events()] == [[A]]


def test_what_never_comes_is_not_remembered_for_ever(
    manager: KvshelfManager, table: ChunkTable
) -> None:
    """Chunks that one rank never publishes, and chunks that failed to load and nobody stores."""
    keys = [key(i) for i in range(20)]
    manager.absorb(WorkerReport(published=dict.fromkeys(keys[:10], FIRST)))
    for each in keys[10:]:
        manager.absorb(WorkerReport(failed={each}))
    manager.on_schedule_end(STEP_END)
    assert list(table.records) == keys[-9:]


def test_workers_of_another_namespace_are_an_error_and_store_nothing(
    manager: KvshelfManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of one engine that see different configurations: nothing would ever hit."""
    said: list[str] = []
    monkeypatch.setattr(manager_module.logger, "error", lambda text, *_: said.append(text))
    manager.absorb(WorkerReport(namespaces={IDENTITY.folder}))
    assert list(manager.prepare_store([A], CONTEXT).keys_to_store) == [A] and not said
    one, two = (WorkerReport(namespaces={name}) for name in (IDENTITY.folder, "m-other"))
    manager.absorb(one.merge(two))
    assert list(manager.prepare_store([B], CONTEXT).keys_to_store) == []
    assert len(said) == 1 and said[0].startswith("kvshelf is off")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_says_which_rank_it_is(tmp_path: Path, rank: int) -> None:
    blocks = np.ones((1, 4096), np.uint8)
    config = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=1)
    with Shelf.of_arrays(
        tmp_path, IDENTITY, blocks, rank=rank, world_size=2, config=config
    ) as shelf:
        outcomes = Outcomes(FaultLog(logging.getLogger("kvshelf")), shelf)
        routes = shelf.submit_store(1, [Chunk(A, range(1))])
        assert shelf.wait([1], Phase.FINISHED, 20)
        [result] = [each for each in shelf.poll() if each.phase is Phase.FINISHED]
        outcomes.store_ended([A], routes, result)
        report = outcomes.take(shelf.stats())
        assert report is not None and report.published == {A: 1 << rank}
        assert report.namespaces == {shelf.folder}
        assert outcomes.take(shelf.stats()) is None
