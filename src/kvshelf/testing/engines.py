"""The conformance suite: what every engine promises. Subclass it and give an ``engine_factory``.

class TestMine(EngineTests):
    @pytest.fixture
    def engine_factory(self): return MyEngine
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf.engine import Engine, EngineConfig, FileStatus, JobKind, Phase
from kvshelf.errors import EngineClosedError
from kvshelf.testing.memory import Blocks, Setup

OK, NOT_FOUND, FOREIGN = FileStatus.OK, FileStatus.NOT_FOUND, FileStatus.FOREIGN


class EngineTests:
    """Promises of ``kvshelf.engine.base.Engine`` that need no files to be seen."""

    config = EngineConfig(
        io_threads=2,
        load_only_threads=1,
        lookup_threads=2,
        piece_bytes=8192,
        step_bytes=4096,
        write_buffer_bytes=1 << 20,
    )

    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        raise NotImplementedError("give the engine's class or a function that makes one")

    @pytest.fixture
    def setup(self, engine_factory: Callable[..., Engine], tmp_path: Path) -> Iterator[Setup]:
        memory = [Blocks((4096, 1000, 8192), 32), Blocks((513,), 16, seed=2)]
        made = Setup(engine_factory, tmp_path, memory, self.config)
        yield made
        made.engine.close()
        assert all(blocks.guards_are_whole() for blocks in memory)

    def test_what_is_stored_is_loaded_elsewhere(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([3, 1, 4, 15])
        before = blocks.blocks([0, 2, 9])
        assert setup.statuses("store", setup.batch((7, [3, 1, 4, 15], 0))) == [OK]
        assert setup.statuses("load", setup.batch((7, [20, 21, 8, 31], 0))) == [OK]
        assert blocks.blocks([20, 21, 8, 31]) == wanted
        assert blocks.blocks([0, 2, 9]) == before

    def test_groups_keep_to_themselves(self, setup: Setup) -> None:
        one, two = setup.memory
        wanted = one.blocks([1, 2]), two.blocks([5])
        batch = setup.batch((1, [1, 2], 0, 0), (1, [5], 0, 1))
        assert setup.statuses("store", batch) == [OK, OK]
        one.clear()
        two.clear()
        batch = setup.batch((1, [9, 8], 0, 0), (1, [0], 0, 1))
        assert setup.statuses("load", batch) == [OK, OK]
        assert (one.blocks([9, 8]), two.blocks([0])) == wanted

    @pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 3), (3, 1), (2, 2)])
    def test_a_part_of_a_chunk(self, setup: Setup, first: int, count: int) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([4, 5, 6, 7][first : first + count])
        setup.statuses("store", setup.batch((1, [4, 5, 6, 7], 0)))
        target = list(range(20, 20 + count))
        assert setup.statuses("load", setup.batch((1, target, first))) == [OK]
        assert blocks.blocks(target) == wanted

    def test_a_chunk_without_its_first_blocks(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([6, 7])
        setup.statuses("store", setup.batch((1, [6, 7], 2)))
        assert setup.statuses("load", setup.batch((1, [20, 21], 2))) == [OK]
        assert blocks.blocks([20, 21]) == wanted
        untouched = blocks.blocks([22, 23, 24])
        assert setup.statuses("load", setup.batch((1, [22, 23, 24], 1))) == [NOT_FOUND]
        assert blocks.blocks([22, 23, 24]) == untouched

    def test_more_blocks_than_there_are(self, setup: Setup) -> None:
        setup.statuses("store", setup.batch((1, [6, 7], 0)))
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0))) == [NOT_FOUND]

    def test_a_stored_chunk_is_never_replaced(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([1])
        setup.statuses("store", setup.batch((1, [1], 0)))
        assert setup.statuses("store", setup.batch((1, [2], 0))) == [OK]
        assert setup.statuses("load", setup.batch((1, [20], 0))) == [OK]
        assert blocks.blocks([20]) == wanted

    def test_a_missing_chunk_leaves_memory_alone(self, setup: Setup) -> None:
        before = setup.memory[0].blocks(range(32))
        assert setup.statuses("load", setup.batch((1, [1, 2], 0))) == [NOT_FOUND]
        assert setup.memory[0].blocks(range(32)) == before

    def test_each_file_has_its_own_status(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([1, 3])
        setup.statuses("store", setup.batch((1, [1], 0), (3, [3], 0)))
        batch = setup.batch((1, [20], 0), (2, [21], 0), (3, [22], 0))
        assert setup.statuses("load", batch) == [OK, NOT_FOUND, OK]
        assert blocks.blocks([20, 22]) == wanted

    def test_a_store_is_released_before_it_is_finished(self, setup: Setup) -> None:
        reports = setup.finish("store", setup.batch((1, [1, 2], 0)))
        assert [(r.kind, r.phase) for r in reports] == [
            (JobKind.STORE, Phase.RELEASED),
            (JobKind.STORE, Phase.FINISHED),
        ]
        assert reports[-1].payload_bytes == 2 * len(setup.memory[0].block(1))

    def test_loads_and_lookups_report_once(self, setup: Setup) -> None:
        setup.statuses("store", setup.batch((1, [1], 0)))
        assert [r.phase for r in setup.finish("load", setup.batch((1, [2], 0)))] == [Phase.FINISHED]
        (report,) = setup.finish("lookup", [setup.path(1), setup.path(2)])
        assert (report.kind, report.statuses) == (JobKind.LOOKUP, (OK, NOT_FOUND))
        assert setup.engine.poll() == []

    @pytest.mark.parametrize(
        "change",
        [
            {"paths": ["/etc/passwd"]},
            {"paths": ["ns/../../x"]},
            {"paths": []},
            {"paths": ["a", "b"]},
            {"keys": [b"short"]},
            {"keys": [b"k" * 129]},
            {"groups": np.array([2], dtype=np.int32)},
            {"groups": np.array([-1], dtype=np.int32)},
            {"first_blocks": np.array([-1], dtype=np.int32)},
            {"block_counts": np.array([0], dtype=np.int32)},
            {"block_counts": np.array([3], dtype=np.int32)},
            {"block_ids": np.array([1, 32], dtype=np.int32)},
            {"block_ids": np.array([-1, 1], dtype=np.int32)},
        ],
        ids=lambda change: f"{next(iter(change))}={next(iter(change.values()))}"[:40],
    )
    @pytest.mark.parametrize("kind", ["store", "load"])
    def test_bad_arguments_queue_nothing(
        self, setup: Setup, kind: str, change: dict[str, Any]
    ) -> None:
        batch = dataclasses.replace(setup.batch((1, [1, 2], 0)), **change)
        with pytest.raises(ValueError, match=r"."):
            getattr(setup.engine, f"submit_{kind}")(1, batch)
        assert setup.engine.drain(5)
        assert setup.engine.poll() == []
        assert setup.statuses("lookup", [setup.path(1)]) == [NOT_FOUND]

    def test_a_job_id_in_use_is_refused(self, setup: Setup) -> None:
        setup.engine.submit_lookup(5, [setup.path(1)])
        with pytest.raises(ValueError, match="5"):
            setup.engine.submit_lookup(5, [setup.path(1)])
        assert setup.engine.wait([5], Phase.FINISHED, 10)
        assert len(setup.engine.poll()) == 1
        setup.engine.submit_lookup(5, [setup.path(1)])

    def test_control_calls_accept_unknown_jobs(self, setup: Setup) -> None:
        setup.engine.release([77])
        setup.engine.cancel([77])
        assert setup.engine.wait([77], Phase.FINISHED, 0)

    def test_release_gives_the_blocks_back(self, setup: Setup) -> None:
        setup.engine.submit_store(1, setup.batch(*((i, [i], 0) for i in range(8))))
        setup.engine.release([1])
        assert setup.engine.wait([1], Phase.RELEASED, 0)
        wanted = setup.memory[0].blocks(range(8))
        setup.memory[0].clear()
        assert setup.engine.drain(20)
        reports = [r for r in setup.engine.poll() if r.phase is Phase.FINISHED]
        assert set(reports[0].statuses) <= {OK, FileStatus.DROPPED}
        for i, status in enumerate(reports[0].statuses):
            found = setup.statuses("load", setup.batch((i, [20], 0)))
            assert found == ([OK] if status is OK else [NOT_FOUND])
            if status is OK:
                assert setup.memory[0].block(20) == wanted[i]

    def test_cancel_is_reported(self, setup: Setup) -> None:
        setup.engine.submit_load(1, setup.batch(*((i, [i], 0) for i in range(8))))
        setup.engine.cancel([1])
        assert setup.engine.wait([1], Phase.FINISHED, 10)
        (report,) = setup.engine.poll()
        assert set(report.statuses) <= {NOT_FOUND, FileStatus.CANCELLED}

    def test_touch_of_anything_is_silent(self, setup: Setup) -> None:
        setup.engine.touch([setup.path(1), setup.path(2)])
        assert setup.engine.drain(10)
        assert setup.engine.poll() == []

    def test_a_closed_engine_says_so(self, setup: Setup) -> None:
        assert setup.engine.close()
        assert setup.engine.close()
        batch = setup.batch((1, [1], 0))
        for call, argument in (
            (setup.engine.submit_store, batch),
            (setup.engine.submit_load, batch),
            (setup.engine.submit_lookup, [setup.path(1)]),
        ):
            with pytest.raises(EngineClosedError):
                call(1, argument)  # type: ignore[arg-type]
        with pytest.raises(EngineClosedError):
            setup.engine.touch([setup.path(1)])

    def test_many_jobs_from_several_threads(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks(range(16))
        rows = [(i, [i], 0) for i in range(16)]
        setup.statuses("store", setup.batch(*rows))
        blocks.clear()
        lock = threading.Lock()

        def load(i: int) -> None:
            with lock:  # engines promise thread safety, the memory engine only one at a time
                setup.engine.submit_load(100 + i, setup.batch((i, [16 + i], 0)))

        threads = [threading.Thread(target=load, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert setup.engine.wait([100 + i for i in range(16)], Phase.FINISHED, 20)
        reports = setup.engine.poll()
        assert sorted(r.job_id for r in reports) == [100 + i for i in range(16)]
        assert all(r.statuses == (OK,) for r in reports)
        assert blocks.blocks(range(16, 32)) == wanted
