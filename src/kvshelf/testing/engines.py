"""The conformance suite: what every engine promises. Subclass it and give an ``engine_factory``::

    class TestMine(EngineTests):
        @pytest.fixture
        def engine_factory(self):
            return MyEngine

The factory takes the arguments of ``Engine``; engines that it makes for one root share chunks.
"""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from kvshelf.disk.keys import make_key, make_mask, masked_all
from kvshelf.engine import FileStatus, JobKind, JobResult, Phase
from kvshelf.testing.memory import Blocks, Setup
from kvshelf.testing.refusals import RefusalTests

OK, NOT_FOUND = FileStatus.OK, FileStatus.NOT_FOUND
CANCELLED, DROPPED = FileStatus.CANCELLED, FileStatus.DROPPED


class EngineTests(RefusalTests):
    """Promises of ``kvshelf.engine.base.Engine`` that need no files to be seen."""

    def test_what_is_stored_is_loaded_elsewhere(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([3, 1, 4, 15])
        others = [i for i in range(32) if i not in (20, 21, 8, 31)]
        before = blocks.blocks(others)
        assert setup.statuses("store", setup.batch((7, [3, 1, 4, 15], 0))) == [OK]
        assert setup.statuses("load", setup.batch((7, [20, 21, 8, 31], 0))) == [OK]
        assert blocks.blocks([20, 21, 8, 31]) == wanted
        assert blocks.blocks(others) == before

    @pytest.mark.parametrize("seed", range(8))
    def test_random_chunks_of_random_groups(self, setup: Setup, seed: int) -> None:
        """Stored from one memory and loaded into another, in parts, in any order."""
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 4))
        shapes = [tuple(rng.integers(1, 9000, rng.integers(1, 5)).tolist()) for _ in range(count)]
        gaps = [int(gap) for gap in rng.choice([0, 1, 64, 4096], count)]
        source, target = (
            [Blocks(s, 40, seed + side, gap) for s, gap in zip(shapes, gaps, strict=True)]
            for side in (100, 200)
        )
        engine = setup.open(groups=[blocks.describe() for blocks in source])
        reader = setup.open(groups=[blocks.describe() for blocks in target])
        rows: list[tuple[int, list[int], int, int]] = []
        for index in range(12):
            ids = rng.permutation(40)[: rng.integers(1, 9)].tolist()
            rows.append((index, ids, int(rng.integers(0, 6)), int(rng.integers(count))))
        assert set(setup.statuses("store", setup.batch(*rows), engine)) == {OK}
        parts, wanted = [], [blocks.blocks(range(40)) for blocks in target]
        free = [rng.permutation(40).tolist() for _ in range(count)]
        for index, ids, first, group in rows:
            begin = int(rng.integers(len(ids)))
            part = ids[begin : begin + int(rng.integers(1, 4))]
            into, free[group] = free[group][: len(part)], free[group][len(part) :]
            if len(into) == len(part):
                parts.append((index, into, first + begin, group))
                for a, b in zip(part, into, strict=True):
                    wanted[group][b] = source[group].block(a)
        report = setup.finish("load", setup.batch(*parts), reader)[-1]
        assert set(report.statuses) == {OK}
        assert [blocks.blocks(range(40)) for blocks in target] == wanted
        assert report.payload_bytes == sum(sum(shapes[g]) * len(into) for _, into, _, g in parts)
        assert engine.close()
        assert reader.close()
        assert all(blocks.guards_are_whole() for blocks in (*source, *target))

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

    def test_parts_of_one_chunk_in_one_job(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([7, 4])
        setup.statuses("store", setup.batch((1, [4, 5, 6, 7], 0)))
        assert setup.statuses("load", setup.batch((1, [20], 3), (1, [21], 0))) == [OK, OK]
        assert blocks.blocks([20, 21]) == wanted

    @pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 1), (1, 3), (4, 1), (3, 2), (0, 5)])
    def test_blocks_that_a_chunk_lacks(self, setup: Setup, first: int, count: int) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([6, 7])
        setup.statuses("store", setup.batch((1, [6, 7], 2)))
        assert setup.statuses("load", setup.batch((1, [20, 21], 2))) == [OK]
        assert blocks.blocks([20, 21]) == wanted
        others = [i for i in range(32) if not 22 <= i < 22 + count]
        before = blocks.blocks(others)
        batch = setup.batch((1, list(range(22, 22 + count)), first))
        assert setup.statuses("load", batch) == [NOT_FOUND]
        assert blocks.blocks(others) == before

    @pytest.mark.parametrize("remove_bad", [True, False])
    def test_a_chunk_that_lacked_blocks_can_be_stored_in_full(
        self, setup: Setup, remove_bad: bool
    ) -> None:
        """Otherwise it would be stored in vain, and missed, for ever."""
        config = dataclasses.replace(self.config, remove_bad=remove_bad)
        engine = setup.open(config=config)
        wanted = setup.memory[0].blocks([4, 5])
        assert setup.statuses("store", setup.batch((1, [5], 1)), engine) == [OK]
        rows = setup.batch((1, [20, 21], 0))
        assert setup.statuses("load", rows, engine) == [NOT_FOUND]
        expected = [OK if remove_bad else NOT_FOUND]
        assert setup.statuses("store", setup.batch((1, [4, 5], 0)), engine) == expected
        assert setup.statuses("load", rows, engine) == expected
        assert not remove_bad or setup.memory[0].blocks([20, 21]) == wanted
        assert engine.close()

    def test_a_stored_chunk_is_never_replaced(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([1])
        setup.statuses("store", setup.batch((1, [1], 0)))
        report = setup.finish("store", setup.batch((1, [2], 0)))[-1]
        assert (report.statuses, report.payload_bytes) == ((OK,), 0)
        assert setup.statuses("load", setup.batch((1, [20], 0))) == [OK]
        assert blocks.blocks([20]) == wanted

    def test_one_of_several_stores_of_a_chunk_wins(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        other = setup.open()
        for job in range(5):
            rows = setup.batch((job, [2 * job], 0), (job, [2 * job + 1], 0))
            setup.engine.submit_store(1000 + job, rows)
            other.submit_store(1000 + job, rows)
        assert setup.engine.drain(20)
        assert other.drain(20)
        reports = [*setup.engine.poll(), *other.poll()]
        assert all(report.statuses == (OK, OK) for report in reports)
        assert len(reports) == 20
        for job in range(5):
            assert setup.statuses("load", setup.batch((job, [20], 0))) == [OK]
            assert blocks.block(20) in blocks.blocks([2 * job, 2 * job + 1])
        assert other.close()

    def test_a_missing_chunk_leaves_others_blocks_alone(self, setup: Setup) -> None:
        before = setup.memory[0].blocks(range(2, 32))
        assert setup.statuses("load", setup.batch((1, [0, 1], 0))) == [NOT_FOUND]
        assert setup.memory[0].blocks(range(2, 32)) == before

    def test_each_file_has_its_own_status(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks([1, 3])
        setup.statuses("store", setup.batch((1, [1], 0), (3, [3], 0)))
        batch = setup.batch((1, [20], 0), (2, [21], 0), (3, [22], 0), (3, [23], 1))
        report = setup.finish("load", batch)[-1]
        assert report.statuses == (OK, NOT_FOUND, OK, NOT_FOUND)
        assert report.errnos == (0, 0, 0, 0)
        assert report.payload_bytes == 2 * len(blocks.block(1))
        assert blocks.blocks([20, 22]) == wanted

    def test_a_store_is_released_before_it_is_finished(self, setup: Setup) -> None:
        reports = setup.finish("store", setup.batch((1, [1, 2], 0), (2, [3], 0)))
        assert [(r.kind, r.phase, r.statuses) for r in reports] == [
            (JobKind.STORE, Phase.RELEASED, (OK, OK)),
            (JobKind.STORE, Phase.FINISHED, (OK, OK)),
        ]
        assert reports[-1].payload_bytes == 3 * len(setup.memory[0].block(1))
        assert 0 <= reports[0].seconds <= reports[1].seconds < 30

    def test_after_release_block_memory_is_the_callers(self, setup: Setup) -> None:
        blocks = setup.memory[0]
        wanted = blocks.blocks(range(16))
        setup.engine.submit_store(1, setup.batch(*((i, [i], 0) for i in range(16))))
        assert setup.engine.wait([1], Phase.RELEASED, 20)
        blocks.clear()
        assert setup.engine.wait([1], Phase.FINISHED, 20)
        assert setup.engine.poll()[-1].statuses == (OK,) * 16
        for i in range(16):
            assert setup.statuses("load", setup.batch((i, [16 + i], 0))) == [OK]
        assert blocks.blocks(range(16, 32)) == wanted

    def test_loads_and_lookups_report_once(self, setup: Setup) -> None:
        setup.statuses("store", setup.batch((1, [1], 0)))
        (report,) = setup.finish("load", setup.batch((1, [2], 0)))
        assert (report.kind, report.phase) == (JobKind.LOAD, Phase.FINISHED)
        (report,) = setup.finish("lookup", [setup.path(1), setup.path(2)])
        assert (report.kind, report.phase) == (JobKind.LOOKUP, Phase.FINISHED)
        assert (report.statuses, report.errnos, report.payload_bytes) == (
            (OK, NOT_FOUND),
            (0, 0),
            0,
        )
        assert setup.engine.poll() == []

    def test_lookups_answer_in_order(self, setup: Setup) -> None:
        there = set(range(0, 200, 7))
        rows = [(i, [i % 32], 0) for i in there]
        assert set(setup.statuses("store", setup.batch(*rows))) == {OK}
        found = setup.statuses("lookup", [setup.path(i) for i in range(200)])
        assert found == [OK if i in there else NOT_FOUND for i in range(200)]

    def test_lookups_by_key_make_the_names_of_the_layout(self, setup: Setup) -> None:
        keys = [
            make_key(bytes([i, 255 - i]) * 16, group) for i in range(20) for group in (0, 70_000)
        ]
        stored = keys[::3]
        setup.store_keys(stored)
        report = setup.report("lookup_keys", ["ns/r0", "ns/r1"], keys)
        there = [OK if key in stored else NOT_FOUND for key in keys]
        assert list(report.statuses[::2]) == there
        assert set(report.statuses[1::2]) == {NOT_FOUND}
        for folders, wrong in ((["ns/r0"], [b"short"]), (["../x"], keys), ([], keys), (["n"], [])):
            with pytest.raises(ValueError, match=r"."):
                setup.engine.submit_lookup_keys(901, folders, wrong)

    def test_what_follows_a_missing_key_of_a_run_may_be_left_out(self, setup: Setup) -> None:
        keys = [make_key(bytes([i]) * 32, 0) for i in range(60)]
        stored = keys[:10] + keys[20:50]
        setup.store_keys(stored)
        report = setup.report("lookup_keys", ["ns/r0"], keys, [40])
        there = [OK if key in stored else NOT_FOUND for key in keys]
        assert list(report.statuses[:11]) == there[:11]
        for said, true in zip(report.statuses[11:40], there[11:40], strict=True):
            assert said in (true, FileStatus.CANCELLED)
        assert list(report.statuses[40:]) == there[40:]  # of no run: looked at each
        for runs in ([0], [61], [30, 31]):
            with pytest.raises(ValueError, match=r"."):
                setup.engine.submit_lookup_keys(901, ["ns/r0"], keys, runs)

    def test_lookups_of_masked_keys_find_the_masked_chunks(self, setup: Setup) -> None:
        keys = [make_key(bytes([i]) * 32, i % 3) for i in range(20)]
        mask = make_mask("an epoch")
        stored = masked_all(keys[:9], mask)
        setup.store_keys(stored)
        for asked, used, wanted in ((keys, mask, 9), (keys, b"", 0), (stored, b"", 9)):
            report = setup.report("lookup_keys", ["ns/r0"], asked, (), used)
            found = sum(status is OK for status in report.statuses)
            assert found == wanted
            assert list(report.statuses[:found]) == [OK] * found
        for wrong in (mask[:31], b"x"):
            with pytest.raises(ValueError, match="mask"):
                setup.engine.submit_lookup_keys(903, ["ns/r0"], keys, (), wrong)

    def test_a_probe_reads_files_into_nothing(self, setup: Setup) -> None:
        assert set(setup.statuses("store", setup.batch((0, [0, 1], 0), (1, [2, 3], 0)))) == {OK}
        before = setup.memory[0].blocks(range(8))
        report = setup.report("probe", [setup.path(i) for i in (0, 1, 7)], 100)
        assert report.kind is JobKind.PROBE
        assert list(report.statuses) == [OK, OK, NOT_FOUND] and report.payload_bytes == 200
        assert setup.memory[0].blocks(range(8)) == before
        for paths in ([], ["../x"], ["/x"]):
            with pytest.raises(ValueError, match=r"."):
                setup.engine.submit_probe(901, paths, 100)

    def test_control_calls_accept_unknown_jobs(self, setup: Setup) -> None:
        setup.engine.release([77])
        setup.engine.cancel([77])
        assert setup.engine.wait([77], Phase.RELEASED, 0)
        assert setup.engine.wait([77, 78], Phase.FINISHED, 0)
        assert setup.engine.wait([], Phase.FINISHED, 0)
        assert setup.engine.drain(0)
        assert setup.engine.poll() == []

    def test_release_gives_the_blocks_back(self, setup: Setup) -> None:
        setup.engine.submit_store(1, setup.batch(*((i, [i], 0) for i in range(8))))
        setup.engine.release([1])
        assert setup.engine.wait([1], Phase.RELEASED, 0)
        wanted = setup.memory[0].blocks(range(8))
        setup.memory[0].clear()
        assert setup.engine.drain(20)
        released, finished = setup.engine.poll()
        assert set(released.statuses) | set(finished.statuses) <= {OK, DROPPED}
        for i, status in enumerate(finished.statuses):
            found = setup.statuses("load", setup.batch((i, [20], 0)))
            assert found == ([OK] if status is OK else [NOT_FOUND])
            if status is OK:
                assert setup.memory[0].block(20) == wanted[i]

    def test_cancel_is_reported(self, setup: Setup) -> None:
        rows = setup.batch(*((i, [i], 0) for i in range(8)))
        setup.engine.submit_load(1, rows)
        setup.engine.submit_lookup(2, rows.paths)
        setup.engine.submit_store(3, dataclasses.replace(rows, paths=[f"ns/{i}" for i in range(8)]))
        setup.engine.cancel([1, 2, 3])
        assert setup.engine.wait([1, 2, 3], Phase.FINISHED, 10)
        finished = {r.job_id: r for r in setup.engine.poll() if r.phase is Phase.FINISHED}
        assert set(finished[1].statuses) <= {NOT_FOUND, CANCELLED}
        assert set(finished[2].statuses) <= {NOT_FOUND, CANCELLED}
        assert set(finished[3].statuses) <= {OK, CANCELLED}
        found = setup.statuses("lookup", [f"ns/{i}" for i in range(8)])
        assert found == [OK if s is OK else NOT_FOUND for s in finished[3].statuses]

    def test_touch_of_anything_is_silent(self, setup: Setup) -> None:
        setup.engine.touch([])
        setup.engine.touch([setup.path(1), setup.path(2)])
        assert setup.engine.drain(10)
        assert setup.engine.poll() == []
        assert setup.statuses("lookup", [setup.path(1)]) == [NOT_FOUND]

    def test_close_reports_on_every_job(self, setup: Setup) -> None:
        rows = setup.batch(*((i, [i], 0) for i in range(16)))
        setup.engine.submit_store(1, rows)
        setup.engine.submit_load(2, rows)
        setup.engine.submit_lookup(3, rows.paths)
        assert setup.engine.close(20)
        reports = setup.engine.poll()
        phases = [(report.job_id, report.phase) for report in reports]
        assert phases.index((1, Phase.RELEASED)) < phases.index((1, Phase.FINISHED))
        assert sorted(job for job, phase in phases if phase is Phase.FINISHED) == [1, 2, 3]
        assert all(len(report.statuses) == 16 for report in reports)
        finished = next(r for r in reports if (r.job_id, r.phase) == (1, Phase.FINISHED))
        fresh = setup.open()
        found = setup.statuses("lookup", rows.paths, fresh)
        assert found == [OK if status is OK else NOT_FOUND for status in finished.statuses]
        assert fresh.close()

    def test_nothing_is_queued_when_all_is_done(self, setup: Setup) -> None:
        rows = setup.batch(*((i, [i], 0) for i in range(16)))
        for kind, work in (("store", rows), ("load", rows), ("lookup", rows.paths)):
            setup.finish(kind, work)
        assert setup.engine.drain(10)
        stats = setup.engine.stats()
        assert (stats.queued_loads, stats.queued_stores, stats.queued_lookups) == (0, 0, 0)
        assert (stats.queued_touches, stats.write_buffer_used_bytes) == (0, 0)
        assert (stats.hung_threads, stats.touches_dropped, stats.removed_bad) == (0, 0, 0)

    def test_many_jobs_from_several_threads(self, setup: Setup) -> None:
        """Each thread stores, looks up and loads its own chunks; one more collects the reports."""
        blocks, engine = setup.memory[0], setup.engine
        wanted = blocks.blocks(range(16))
        rounds, reports, failures = 12, list[JobResult](), list[BaseException]()
        done = threading.Event()

        def work(thread: int) -> None:
            try:
                mine = range(4 * thread, 4 * thread + 4)
                for turn in range(rounds):
                    rows = [(100 * turn + i, [i], 0) for i in mine]
                    job = 1000 * thread + 3 * turn
                    engine.submit_store(job, setup.batch(*rows))
                    assert engine.wait([job], Phase.FINISHED, 20)
                    blocks.clear([16 + i for i in mine])
                    rows = [(chunk, [16 + i], 0) for chunk, (i,), _ in rows]
                    batch = setup.batch(*rows)
                    engine.submit_lookup(job + 1, batch.paths)
                    engine.submit_load(job + 2, batch)
                    engine.touch(batch.paths)
                    assert engine.wait([job + 1, job + 2], Phase.FINISHED, 20)
                    assert blocks.blocks([16 + i for i in mine]) == [wanted[i] for i in mine]
            except BaseException as error:  # a thread's failure must fail the test
                failures.append(error)

        def collect() -> None:
            while not done.is_set():
                reports.extend(engine.poll())
                time.sleep(0.001)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        collector = threading.Thread(target=collect)
        for thread in (*workers, collector):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        collector.join()
        reports.extend(engine.poll())
        if failures:
            raise failures[0]
        assert all(report.statuses == (OK,) * 4 for report in reports)
        seen = [(report.job_id, report.phase) for report in reports]
        jobs = [1000 * i + 3 * turn for i in range(4) for turn in range(rounds)]
        finished = [(job + k, Phase.FINISHED) for job in jobs for k in range(3)]
        released = [(job, Phase.RELEASED) for job in jobs]
        assert len(seen) == len(set(seen))
        assert set(seen) == set(finished) | set(released)
        assert all(seen.index((j, Phase.RELEASED)) < seen.index((j, Phase.FINISHED)) for j in jobs)
