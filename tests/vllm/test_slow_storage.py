"""The scheduler's side on storage that is late, silent or broken: no request waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import (
    LookupResult,
    ReqContext,
    ScheduleEndContext,
)

from kvshelf import Identity, make_key, metrics
from kvshelf.breaker import State
from kvshelf.config import Settings
from kvshelf.engine import EngineStats, FileStatus, JobKind, JobResult, Phase
from kvshelf.shelf import Shelf
from kvshelf.testing.memory_engine import MemoryEngine
from kvshelf.vllm.compat import KeyRun
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.scheduler.chunk_table import ChunkTable
from kvshelf.vllm.scheduler.manager import KvshelfManager

STEP_END = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())
HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY
RETRY_SECONDS = 0.1


def key(i: int) -> bytes:
    return make_key(i.to_bytes(32, "big"), 0)


class Storage(MemoryEngine):
    """Answers when it is told to, with what it is told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: dict[int, tuple[JobKind, int]] = {}
        self.runs: list[tuple[int, ...]] = []
        self.ready: list[JobResult] = []
        self.answers_with: FileStatus | None = None  # at once
        self.hung_threads = 0

    def submit_lookup_keys(
        self, job_id: int, folders: Any, keys: Any, runs: Any = (), mask: bytes = b""
    ) -> None:
        self.runs.append(tuple(runs))
        self._ask(job_id, JobKind.LOOKUP, len(keys))

    def submit_probe(self, job_id: int, paths: Any, bytes_max: int) -> None:
        self._ask(job_id, JobKind.PROBE, len(paths))

    def _ask(self, job_id: int, kind: JobKind, rows: int) -> None:
        self.asked[job_id] = (kind, rows)
        if self.answers_with is not None:
            self.answer(self.answers_with)

    def answer(self, status: FileStatus, payload_bytes: int = 0, seconds: float = 1.0) -> None:
        for job_id, (kind, rows) in self.asked.items():
            self.ready.append(
                JobResult(
                    job_id,
                    kind,
                    Phase.FINISHED,
                    (status,) * rows,
                    (0,) * rows,
                    payload_bytes,
                    seconds,
                )
            )
        self.asked.clear()

    def poll(self) -> list[JobResult]:
        ready, self.ready = self.ready, []
        return ready

    def stats(self) -> EngineStats:
        return EngineStats(hung_threads=self.hung_threads)


class Scheduler:
    def __init__(self, root: Path | list[Path], **settings: Any) -> None:
        shelf = Shelf(root, Identity({"model": "m"}), engine=Storage)
        self.storage: Any = shelf._engines[0]
        table = ChunkTable(
            hit_ttl_seconds=30, miss_ttl_seconds=0.05, failed_ttl_seconds=60, keys_max=1000
        )
        given = {"lookup_wait_seconds": 0.05, "breaker_retry_seconds": RETRY_SECONDS, **settings}
        self.manager = KvshelfManager(
            shelf,
            table,
            Settings(**given),
            chunk_bytes=1_000_000,
            chunk_tokens=16,
            emit_events=False,
        )

    def ask(self, *keys: bytes, req_id: str = "r") -> list[LookupResult]:
        self.manager.begin_scan(req_id)
        answers = [self.manager.lookup(k, ReqContext(req_id=req_id)) for k in keys]
        self.step()
        return answers

    def step(self) -> None:
        self.manager.on_schedule_end(STEP_END)

    def wait(self, *keys: bytes, req_id: str = "r") -> tuple[list[LookupResult], float]:
        start = time.monotonic()
        while RETRY in (answers := self.ask(*keys, req_id=req_id)):
            assert time.monotonic() - start < 10
            time.sleep(0.002)
        return answers, time.monotonic() - start

    def counted(self, name: str) -> str:
        taken = self.manager.get_stats()
        return "" if taken is None else str({k: v for k, v in taken.reduce().items() if name in k})

    def open(self) -> None:
        """Let lookups come too late until storage is left alone."""
        for i in range(100):
            if self.manager._breakers.reading[0].state is State.OPEN:
                return
            self.wait(key(1000 + i))
        raise AssertionError("it was never left alone")


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    made = Scheduler(tmp_path)
    yield made
    made.manager.shutdown()


def test_a_request_waits_for_its_lookup_only_so_long(scheduler: Scheduler) -> None:
    answers, seconds = scheduler.wait(key(1), key(2))
    assert answers == [MISS, MISS] and 0.04 < seconds < 1
    # The probe went on, and its answer serves the next request.
    scheduler.storage.answer(FileStatus.OK)
    scheduler.step()
    assert scheduler.ask(key(1), key(2)) == [HIT, HIT]


def test_both_sides_of_the_breaker_are_shown_with_every_report(scheduler: Scheduler) -> None:
    """Or an alert could not tell "well" from "not scraped"."""
    assert scheduler.manager.get_stats() is None
    scheduler.storage.answers_with = FileStatus.OK
    scheduler.wait(key(1))
    shown = scheduler.counted(metrics.BREAKER_STATE)
    assert all(side in shown for side in metrics.BREAKER_SIDES)


def test_storage_that_does_not_answer_is_left_alone(scheduler: Scheduler) -> None:
    scheduler.open()
    asked = len(scheduler.storage.runs)
    assert scheduler.ask(*map(key, range(50))) == [MISS] * 50
    scheduler.manager.prefetch([KeyRun([key(77)], 16, is_prefix=True)])
    scheduler.step()
    assert len(scheduler.storage.runs) == asked
    output = scheduler.manager.prepare_store([key(3)], ReqContext(req_id="r"))
    assert output.keys_to_store == []
    counted = scheduler.counted("")
    assert metrics.BREAKER_OPENINGS in counted and metrics.BREAKER_STATE in counted


def test_hits_are_back_once_it_answers_and_one_load_came(scheduler: Scheduler) -> None:
    scheduler.open()
    scheduler.storage.answer(FileStatus.TIMED_OUT)  # what was asked before
    time.sleep(RETRY_SECONDS)
    scheduler.step()
    assert [kind for kind, _ in scheduler.storage.asked.values()] == [JobKind.PROBE]
    scheduler.storage.answer(FileStatus.TIMED_OUT)
    scheduler.step()
    assert scheduler.manager._breakers.reading[0].state is State.OPEN
    time.sleep(RETRY_SECONDS)
    scheduler.step()
    scheduler.storage.answers_with = FileStatus.OK
    scheduler.storage.answer(FileStatus.NOT_FOUND)
    scheduler.step()
    assert scheduler.manager._breakers.reading[0].state is State.TRYING
    assert scheduler.wait(key(1), req_id="one")[0] == [HIT]
    assert scheduler.ask(key(1), req_id="two") == [MISS]
    scheduler.manager.absorb(WorkerReport(outcomes=[("load", "", 0)]))
    assert scheduler.ask(key(1), req_id="two") == [HIT]


def test_probes_stop_while_threads_hang(scheduler: Scheduler) -> None:
    scheduler.open()
    scheduler.storage.answer(FileStatus.TIMED_OUT)
    scheduler.storage.hung_threads = 100
    time.sleep(RETRY_SECONDS)
    scheduler.step()
    assert scheduler.storage.asked == {}
    scheduler.storage.hung_threads = 0
    time.sleep(RETRY_SECONDS)
    scheduler.step()
    assert len(scheduler.storage.asked) == 1


@pytest.mark.parametrize("cause", ["load: Input/output error", "load: timed out"])
def test_loads_that_fail_for_the_storage_open_it(scheduler: Scheduler, cause: str) -> None:
    scheduler.storage.answers_with = FileStatus.OK
    assert scheduler.wait(key(1))[0] == [HIT]
    for _ in range(5):
        scheduler.manager.absorb(WorkerReport(unread={key(1)}, outcomes=[("load", cause, 0)]))
    assert scheduler.ask(key(2)) == [MISS]
    assert scheduler.manager._breakers.reading[0].state is State.OPEN


def test_an_unread_chunk_is_tried_again_soon_and_a_bad_one_is_not(scheduler: Scheduler) -> None:
    scheduler.storage.answers_with = FileStatus.OK
    assert scheduler.wait(key(1), key(2))[0] == [HIT, HIT]
    scheduler.manager.absorb(WorkerReport(unread={key(1)}, failed={key(2)}))
    assert scheduler.ask(key(1), key(2)) == [MISS, MISS]
    time.sleep(RETRY_SECONDS + 0.05)
    scheduler.step()
    assert scheduler.wait(key(1), key(2))[0] == [HIT, MISS]


def test_a_full_disk_stops_stores_alone_and_one_tries_again(scheduler: Scheduler) -> None:
    scheduler.storage.answers_with = FileStatus.OK
    for _ in range(5):
        scheduler.manager.absorb(WorkerReport(outcomes=[("store", "store: No space left", 0)]))
    store = scheduler.manager.prepare_store
    scheduler.step()
    assert store([key(3)], ReqContext(req_id="one")).keys_to_store == []
    assert scheduler.wait(key(1))[0] == [HIT]
    time.sleep(RETRY_SECONDS)
    scheduler.step()
    assert store([key(3)], ReqContext(req_id="one")).keys_to_store == [key(3)]
    assert store([key(4)], ReqContext(req_id="two")).keys_to_store == []
    scheduler.manager.absorb(WorkerReport(outcomes=[("store", "", 0)], published={key(3): 1}))
    assert store([key(4)], ReqContext(req_id="two")).keys_to_store == [key(4)]


def test_keys_behind_a_missing_one_are_not_asked_for(scheduler: Scheduler) -> None:
    scheduler.storage.answers_with = FileStatus.NOT_FOUND
    assert scheduler.wait(key(5))[0] == [MISS]
    scheduler.storage.answers_with = None
    window = KeyRun([key(i) for i in range(20, 23)], 16, is_prefix=False)
    prefix = KeyRun([key(i) for i in range(10)], 16, is_prefix=True)
    scheduler.manager.prefetch([window, prefix])
    assert scheduler.storage.runs[-1] == (5,)
    assert list(scheduler.storage.asked.values()) == [(JobKind.LOOKUP, 8)]
    # What the lookup left out is unknown, not absent.
    scheduler.storage.answer(FileStatus.CANCELLED)
    scheduler.step()
    assert scheduler.manager._table.answer(key(1)) is None


def test_a_first_hit_waits_for_a_measurement_and_is_loaded(scheduler: Scheduler) -> None:
    keys = [key(i) for i in range(20)]
    assert scheduler.manager.admit("r", 2000, len(keys), lambda: keys) is None
    scheduler.storage.answer(FileStatus.OK, payload_bytes=8_000_000, seconds=0.001)
    scheduler.step()
    assert scheduler.manager.admit("r", 2000, len(keys), lambda: keys) is True


def test_a_hit_on_slow_storage_is_computed_and_says_miss(scheduler: Scheduler) -> None:
    keys = [key(i) for i in range(20)]
    scheduler.storage.answers_with = FileStatus.OK
    assert scheduler.wait(*keys)[0] == [HIT] * 20
    scheduler.storage.answers_with = None
    assert scheduler.manager.admit("r", 2000, len(keys), lambda: keys) is None
    time.sleep(0.06)  # the measurement is not back: that alone says that storage is slow
    assert scheduler.manager.admit("r", 2000, len(keys), lambda: keys) is False
    assert scheduler.ask(*keys) == [MISS] * 20
    assert scheduler.ask(keys[0], req_id="another") == [HIT]
    scheduler.manager.on_request_finished(ReqContext(req_id="r"))
    assert scheduler.ask(keys[0]) == [HIT]
    assert metrics.REFUSED_HIT_TOKENS in scheduler.counted("")


def test_reads_that_hang_while_names_answer_open_it(scheduler: Scheduler) -> None:
    keys = [key(i) for i in range(20)]
    for i in range(5):
        scheduler.storage.answers_with = FileStatus.OK
        assert scheduler.wait(*keys, req_id=f"r{i}")[0] == [HIT] * 20
        scheduler.storage.answers_with = None
        assert scheduler.manager.admit(f"r{i}", 2000, len(keys), lambda: keys) is None
        scheduler.storage.answer(FileStatus.TIMED_OUT)
        scheduler.step()
    assert scheduler.manager._breakers.reading[0].state is State.OPEN


def test_an_answer_from_before_a_store_does_not_undo_it(scheduler: Scheduler) -> None:
    """Looked for, then published by this engine, then the answer to the first is fetched."""
    manager = scheduler.manager
    assert scheduler.ask(key(1)) == [RETRY]
    scheduler.storage.answer(FileStatus.NOT_FOUND)
    manager.prepare_store([key(1)], ReqContext(req_id="r"))
    manager.absorb(WorkerReport(published={key(1): 1}))
    scheduler.step()
    assert manager.lookup(key(1), ReqContext(req_id="r")) is HIT
    assert manager.prepare_store([key(1)], ReqContext(req_id="r")).keys_to_store == []


def test_an_answer_from_before_a_pause_says_nothing(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for at the end of the last step before it, and fetched after it."""
    assert scheduler.ask(key(1)) == [RETRY]
    scheduler.storage.answer(FileStatus.OK)
    then = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: then + 3600)
    scheduler.manager.on_new_request(ReqContext(req_id="r"))
    assert scheduler.ask(key(1)) == scheduler.ask(key(1)) == [RETRY]
    scheduler.storage.answer(FileStatus.OK)
    assert scheduler.ask(key(1)) == [HIT]
