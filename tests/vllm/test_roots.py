"""The scheduler's side over two roots: one that does not answer is a miss for its share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.kv_offload.base import LookupResult, ReqContext  # noqa: E402

from kvshelf import Identity, make_key, metrics  # noqa: E402
from kvshelf.breaker import State  # noqa: E402
from kvshelf.engine import EngineConfig, FileStatus, JobKind, JobResult, Phase  # noqa: E402
from kvshelf.faultlog import FaultLog  # noqa: E402
from kvshelf.shelf import Shelf  # noqa: E402
from kvshelf.upkeep.evict import duty as duty_module  # noqa: E402
from kvshelf.upkeep.evict.duty import EvictionDuty  # noqa: E402
from kvshelf.upkeep.evict.journal import RemovedWriter  # noqa: E402
from kvshelf.upkeep.evict.limits import Amount, Limits  # noqa: E402
from kvshelf.upkeep.evict.news import News  # noqa: E402
from kvshelf.vllm.compat import KeyRun  # noqa: E402
from kvshelf.vllm.report import WorkerReport  # noqa: E402
from kvshelf.vllm.scheduler.chunk_record import Answer  # noqa: E402
from kvshelf.vllm.scheduler.manager import logger  # noqa: E402
from kvshelf.vllm.tier import tier_settings  # noqa: E402
from kvshelf.vllm.worker.outcomes import Outcomes  # noqa: E402
from tests.vllm.test_slow_storage import RETRY_SECONDS, Scheduler, Storage  # noqa: E402

HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY
OK, IO_ERROR, TIMED_OUT = FileStatus.OK, FileStatus.IO_ERROR, FileStatus.TIMED_OUT
CLOSED, OPEN, TRYING = State.CLOSED, State.OPEN, State.TRYING


class Pair(Scheduler):
    """A scheduler over two roots whose storage a test answers for; ``good`` and ``bad``."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.roots = [folder / "good", folder / "bad"]
        super().__init__(self.roots, **settings)
        engines: list[Storage] = self.manager._shelf.inner._engines  # type: ignore[assignment]
        self.good, self.bad = engines
        self.good.answers_with = OK
        self.a, self.b = self.keys_of(0, 40), self.keys_of(1, 40)

    def keys_of(self, root: int, count: int) -> list[Any]:
        made = (make_key(i.to_bytes(32, "big"), 0) for i in range(100 * count))
        return [key for key in made if self.manager._shelf.root_of(key) == root][:count]

    @property
    def reading(self) -> list[State]:
        return [breaker.state for breaker in self.manager._breakers.reading]

    @property
    def writing(self) -> list[State]:
        return [breaker.state for breaker in self.manager._breakers.writing]

    def open(self) -> None:
        """Let the bad root's lookups come too late until it is left alone."""
        for key in self.b[20:]:
            if self.reading[1] is OPEN:
                return
            self.wait(key)
        raise AssertionError("it was never left alone")

    def stores(self, *keys: bytes, req_id: str = "r") -> list[bytes]:
        output = self.manager.prepare_store(keys, ReqContext(req_id=req_id))
        return list(output.keys_to_store)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.manager.shutdown()


def test_the_good_root_answers_while_the_other_is_waited_for(pair: Pair) -> None:
    (a, b), _ = pair.wait(pair.a[0], pair.b[0])
    assert (a, b) == (HIT, MISS)
    assert pair.ask(pair.a[1], pair.b[1]) == [RETRY, RETRY]
    assert pair.ask(pair.a[1], pair.b[1]) == [HIT, RETRY]
    pair.bad.answer(OK)
    pair.step()
    assert pair.ask(pair.b[0], pair.b[1]) == [HIT, HIT]


def test_a_root_that_does_not_answer_is_left_alone_and_nobody_waits_for_it(pair: Pair) -> None:
    pair.open()
    assert pair.reading == [CLOSED, OPEN] and pair.writing == [CLOSED, CLOSED]
    asked = len(pair.bad.runs)
    for i in range(5):  # not one step of waiting for a key of the bad root
        keys = pair.a[i], pair.b[i], pair.a[i + 5]
        assert pair.ask(*keys, req_id=f"r{i}")[1] is MISS
        assert pair.ask(*keys, req_id=f"r{i}") == [HIT, MISS, HIT]
    assert len(pair.bad.runs) == asked
    counted = pair.counted(metrics.BREAKER_OPENINGS)
    assert str(pair.roots[1]) in counted and str(pair.roots[0]) not in counted


def test_no_more_of_a_prefix_is_asked_for_than_can_be_of_use(pair: Pair) -> None:
    pair.open()
    asked = len(pair.bad.runs), len(pair.good.runs)
    prefix = [*pair.a[:3], pair.b[0], *pair.a[3:6]]
    window = [*pair.a[10:12], pair.b[1], pair.a[12]]
    pair.manager.prefetch([KeyRun(prefix, 16, is_prefix=True), KeyRun(window, 16, is_prefix=False)])
    assert len(pair.bad.runs) == asked[0] and pair.good.runs[asked[1] :] == [(3,)]
    pair.step()
    known = {*pair.a[:3], *pair.a[10:13]}
    assert {key for key in (*prefix, *window) if pair.manager._table.answer(key)} == known


def test_only_the_good_root_is_written_to(pair: Pair) -> None:
    pair.open()
    pair.counted("")
    assert pair.stores(pair.a[0], pair.b[0], pair.a[1]) == [pair.a[0], pair.a[1]]
    counted = pair.counted(metrics.STORE_OUTCOMES)
    assert "breaker" in counted and counted.endswith(": 1}")


def test_a_full_root_stops_stores_to_it_alone_and_one_tries_again(pair: Pair) -> None:
    for _ in range(5):
        pair.manager.absorb(WorkerReport(outcomes=[("store", "store: no space", 1)]))
    pair.step()
    assert pair.reading == [CLOSED, CLOSED] and pair.writing == [CLOSED, OPEN]
    assert pair.stores(pair.b[0], pair.a[0]) == [pair.a[0]]
    pair.bad.answers_with = OK
    assert pair.wait(pair.b[1])[0] == [HIT]
    time.sleep(RETRY_SECONDS)
    pair.step()
    assert pair.stores(pair.a[1], req_id="none of its") == [pair.a[1]]
    assert pair.stores(pair.b[2], pair.a[2], req_id="one") == [pair.b[2], pair.a[2]]
    assert pair.stores(pair.b[3], req_id="two") == []
    pair.manager.absorb(WorkerReport(outcomes=[("store", "", 1)]))
    assert pair.stores(pair.b[3], req_id="two") == [pair.b[3]]


def test_faults_of_loads_open_the_root_that_they_are_of(pair: Pair) -> None:
    for key in pair.b[:5]:
        fault, well = ("load", "load: timed out", 1), ("load", "", 0)
        pair.manager.absorb(WorkerReport(unread={key}, outcomes=[fault, well]))
    assert pair.reading == [CLOSED, OPEN]


def test_it_is_asked_whether_it_is_back_and_one_request_tries(pair: Pair) -> None:
    pair.open()
    pair.bad.answer(TIMED_OUT)
    time.sleep(RETRY_SECONDS)
    pair.step()
    assert [kind for kind, _ in pair.bad.asked.values()] == [JobKind.PROBE]
    pair.bad.answers_with = OK
    pair.bad.answer(FileStatus.NOT_FOUND)
    pair.step()
    assert pair.reading == [CLOSED, TRYING]
    key = pair.b[0]
    assert pair.wait(key, pair.a[0], req_id="one")[0] == [HIT, HIT]
    assert pair.wait(key, pair.a[0], req_id="two")[0] == [MISS, HIT]
    pair.manager.absorb(WorkerReport(outcomes=[("load", "", 0)]))  # says nothing of it
    assert pair.reading == [CLOSED, TRYING]
    pair.manager.absorb(WorkerReport(outcomes=[("load", "", 1)]))
    assert pair.reading == [CLOSED, CLOSED]
    assert pair.wait(key, pair.a[0], req_id="two")[0] == [HIT, HIT]


def test_a_measurement_that_fails_in_one_root_is_that_roots_fault(pair: Pair) -> None:
    keys = [*pair.a[:4], *pair.b[:4]]
    pair.bad.answers_with = OK
    for _ in range(5):
        pair.bad.answers_with = None
        assert pair.manager.admit("r", 2000, len(keys), lambda: keys) is None
        pair.bad.answer(TIMED_OUT)
        pair.step()
    assert pair.reading == [CLOSED, OPEN]
    assert pair.manager.admission.decide(2000, 8, time.monotonic()).value == "measure"


def test_threads_that_hang_in_one_root_do_not_keep_the_other_from_being_measured(
    pair: Pair,
) -> None:
    pair.bad.hung_threads = 100
    keys = pair.a[:8]
    pair.good.answers_with = None
    assert pair.manager.admit("r", 2000, len(keys), lambda: keys) is None
    pair.good.answer(OK, payload_bytes=8_000_000, seconds=0.001)
    pair.step()
    assert pair.manager.admit("r", 2000, len(keys), lambda: keys) is True


def test_a_refused_request_is_told_miss_in_both(pair: Pair) -> None:
    pair.bad.answers_with = OK
    assert pair.wait(pair.a[0], pair.b[0])[0] == [HIT, HIT]
    pair.manager._refused.add("r")
    assert pair.ask(pair.a[0], pair.b[0]) == [MISS, MISS]
    assert pair.ask(pair.a[0], pair.b[0], req_id="another") == [HIT, HIT]


def test_only_what_everybody_reads_is_touched(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[bytes] = []
    monkeypatch.setattr(
        pair.manager._shelf, "touch_at", lambda keys, *_, **__: touched.extend(keys)
    )
    pair.open()
    context = ReqContext(req_id="r")
    pair.manager.touch([pair.a[0], pair.b[0]], context)
    pair.manager.touch([pair.b[1]], context)
    assert touched == [pair.a[0]]


def test_both_roots_are_shown_with_every_report(pair: Pair) -> None:
    pair.wait(pair.a[0])
    shown = pair.counted(metrics.BREAKER_STATE)
    for root in pair.roots:
        assert shown.count(str(root)) == 2


def test_a_worker_reports_each_root_of_a_job_by_itself(pair: Pair) -> None:
    outcomes = Outcomes(FaultLog(logger), pair.manager._shelf.inner)
    keys, routes = [pair.a[0], pair.b[0], pair.a[1], pair.b[1]], [(0, [0, 2]), (1, [1, 3])]

    def report(job: int, statuses: list[FileStatus], errnos: list[int]) -> set[Any]:
        outcomes.load_begins(job)
        result = JobResult(
            job, JobKind.LOAD, Phase.FINISHED, tuple(statuses), tuple(errnos), 0, 0.1
        )
        outcomes.load_ended(keys, routes, result)
        taken = outcomes.take(pair.manager._shelf.inner.stats())
        assert taken is not None
        return set(taken.outcomes)

    assert report(1, [OK] * 4, [0] * 4) == {("load", "", 0), ("load", "", 1)}
    bad = [OK, OK, OK, IO_ERROR]
    assert report(2, bad, [0, 0, 0, 5]) == {
        ("load", "", 0),
        ("load", "load: Input/output error", 1),
    }
    # A damaged chunk says nothing of the storage.
    assert report(3, [FileStatus.CORRUPT, OK] * 2, [0] * 4) == {("load", "", 1)}


def until(is_so: Any, step: Any) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        step()
        time.sleep(0.005)


def test_every_root_has_a_duty_and_only_its_own_chunks_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a root was added, another one still has chunks that lie in the new one now; when they
    are evicted there, nothing is known of the chunk."""
    monkeypatch.setattr(duty_module, "WAKE_SECONDS", 0.02)
    folder = Identity({"model": "m"}).folder
    made = Pair(tmp_path)
    made.bad.answers_with = OK
    limits = Limits(shelf_bytes=1 << 40)
    duties = [EvictionDuty(r, folder, limits=limits, lease_seconds=1) for r in made.roots]
    eviction = type(made.manager._eviction)(
        duties, made.manager._shelf, made.manager._stats, logger
    )
    made.manager._eviction = eviction
    try:
        until(lambda: all(d._reader._offsets is not None for d in duties), made.step)
        assert made.wait(made.a[0], made.a[1], made.b[0])[0] == [HIT] * 3
        RemovedWriter(made.roots[1], "e" * 16).append(folder, [made.a[0], made.b[0]])
        RemovedWriter(made.roots[0], "f" * 16).append(folder, [made.a[1]])
        gone = {made.a[1], made.b[0]}
        table = made.manager._table
        until(lambda: all(table.answer(k) is not Answer.HIT for k in gone), made.step)
        assert made.ask(made.a[0]) == [HIT]
        shown = ""

        def look() -> None:
            nonlocal shown
            made.step()
            shown += made.counted(metrics.EVICT_LEASE_HELD)

        until(lambda: all(f"{root}" in shown for root in made.roots), look)
    finally:
        made.manager.shutdown()
    assert not any(duty._thread.is_alive() for duty in duties)


def test_bytes_of_a_namespace_are_those_in_all_roots(pair: Pair) -> None:
    eviction = pair.manager._eviction
    eviction._duties = [object(), object()]  # type: ignore[list-item]
    eviction._count(0, News(shelf={"x": Amount(1, 5), "y": Amount(1, 1)}))
    eviction._count(1, News(shelf={"x": Amount(1, 7)}))
    stats = pair.counted(metrics.SHELF_BYTES)
    assert "12" in stats and ": 1" in stats
    eviction._count(0, News())
    assert "7" in pair.counted(metrics.SHELF_BYTES)
    eviction._duties = []


def test_a_tier_takes_several_roots() -> None:
    settings = tier_settings({"root_dir": ["/mnt/a", "/mnt/b"]})
    assert settings.roots == ("/mnt/a", "/mnt/b")


def test_threads_of_both_roots_are_the_users(tmp_path: Path) -> None:
    seen: list[EngineConfig] = []

    def engine(root: str, groups: Any, config: EngineConfig, **kwargs: Any) -> Storage:
        seen.append(config)
        return Storage(root, groups, config, **kwargs)

    config = EngineConfig(io_threads=8, lookup_threads=10)
    Shelf([tmp_path / "a", tmp_path / "b"], Identity({"model": "m"}), config=config, engine=engine)
    assert [each.io_threads for each in seen] == [4, 4]
    assert [each.lookup_threads for each in seen] == [5, 5]
