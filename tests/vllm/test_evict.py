"""What engines do about evicted chunks: forget them, and say so once and truthfully."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.kv_offload.base import LookupResult  # noqa: E402

from kvshelf import metrics  # noqa: E402
from kvshelf.config import Settings  # noqa: E402
from kvshelf.shelf import Shelf  # noqa: E402
from kvshelf.upkeep.evict import duty as duty_module  # noqa: E402
from kvshelf.upkeep.evict.duties import duties_of, limits_of  # noqa: E402
from kvshelf.upkeep.evict.journal import RemovedWriter  # noqa: E402
from kvshelf.upkeep.evict.limits import Limits  # noqa: E402
from kvshelf.vllm.report import WorkerReport  # noqa: E402
from kvshelf.vllm.scheduler import eviction as eviction_module  # noqa: E402
from tests.harness.quirk_mount import quirk_mount  # noqa: E402
from tests.vllm.test_adapter import (  # noqa: E402
    BLOCK_BYTES,
    CONTEXT,
    IDENTITY,
    LAYERS,
    PER_CHUNK,
    STEP_END,
    Replica,
    key,
)

A, B = key(1), key(2)
FILE_BYTES = LAYERS * BLOCK_BYTES * PER_CHUNK + 4096
LISTEN = Limits(shelf_bytes=1 << 40)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Replica]]:
    monkeypatch.setattr(duty_module, "WAKE_SECONDS", 0.02)
    made: list[Replica] = []

    def one(limits: Limits | None = LISTEN) -> Replica:
        made.append(Replica(tmp_path / "shelf", limits=limits))
        return made[-1]

    yield one
    for replica in made:
        replica.close()


class Told:
    """Events as they come, step by step: "+" and "-" with the key."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.events: list[tuple[str, bytes]] = []
        self.counted: dict[str, Any] = {}

    def step(self) -> None:
        manager = self.replica.manager
        manager.on_schedule_end(STEP_END)
        for event in manager.take_events():
            self.events += [("-" if event.removed else "+", k) for k in event.keys]
        if (stats := manager.get_stats()) is not None:
            for name, value in stats.reduce().items():
                self.counted[name] = self.counted.get(name, 0) + value

    def until(self, is_enough: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_enough():
            assert time.monotonic() < deadline, self.events
            self.step()
            time.sleep(0.005)


def evict(replica: Replica, *keys: bytes) -> None:
    """As an evictor on another host."""
    for each in keys:
        replica.path(each).unlink()
    RemovedWriter(replica.root, "f" * 16).append(IDENTITY.folder, keys)


def long_ago(replica: Replica) -> None:
    """Whatever was published was so before any journal that is read now."""
    for record in replica.table.records.values():
        record.published_at = float("-inf")


def read_once(replica: Replica) -> None:
    """The journal is read from now on."""
    (duty,) = replica.manager._eviction._duties
    deadline = time.monotonic() + 20
    while duty._reader._offsets is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_not_yet_forgotten_does_not_grow(make: Callable[..., Replica]) -> None:
    one = make()
    manager = one.manager
    (duty,) = manager._eviction._duties
    for step in range(7):
        with duty._box._lock:  # as if so many were evicted since the step before
            gone = {i.to_bytes(36, "big"): None for i in range(step * 8000, step * 8000 + 8000)}
            duty._box._news.gone.update(gone)
            duty._box.has_news = True
        manager.on_schedule_end(STEP_END)
    assert len(manager._eviction._gone) <= 8000


def test_an_evicted_chunk_is_a_miss_at_once_and_an_event(make: Callable[..., Replica]) -> None:
    one, two = make(), make()
    for replica in (one, two):
        read_once(replica)
    one.store([A, B], list(range(8)))
    told = Told(one), Told(two)
    assert two.lookup(A, B) == [LookupResult.HIT] * 2
    for each in told:
        each.step()
    assert told[0].events == [("+", A), ("+", B)]
    assert told[1].events == []  # who did not store it does not say so
    for replica in (one, two):
        long_ago(replica)
    evict(one, A)
    for each in told:
        each.until(lambda each=each: ("-", A) in each.events)
    # Without a probe, for the time of a miss.
    assert [r.manager.lookup(A, CONTEXT) for r in (one, two)] == [LookupResult.MISS] * 2
    assert one.manager.lookup(B, CONTEXT) is LookupResult.HIT
    assert told[0].events == [("+", A), ("+", B), ("-", A)]
    assert one.manager.prepare_store([A, B], CONTEXT).keys_to_store == [A]
    RemovedWriter(one.root, "e" * 16).append(IDENTITY.folder, [A])  # of its second rank
    told[0].until(lambda: told[0].counted[metrics.GONE_KEYS] == 2)
    assert told[0].events[3:] == []


def test_a_chunk_that_was_stored_anew_meanwhile_is_not_said_to_be_gone(
    make: Callable[..., Replica],
) -> None:
    """The journal comes late: what it tells may be of the file before."""
    one = make()
    read_once(one)
    one.store([A, B], list(range(8)))
    told = Told(one)
    evict(one, A)
    writer = RemovedWriter(one.root, "e" * 16)
    told.until(lambda: ("-", A) in told.events)
    one.store([A], [0, 1, 2, 3])
    told.step()
    assert told.events == [("+", A), ("+", B), ("-", A), ("+", A)]
    writer.append(IDENTITY.folder, [A, B])  # of another evictor, and long ago
    told.until(lambda: told.counted.get(metrics.GONE_KEYS) == 3)
    told.until(lambda: one.manager.lookup(A, CONTEXT) is LookupResult.HIT)
    told.until(lambda: one.manager.lookup(B, CONTEXT) is LookupResult.HIT)
    assert told.events[4:] == []


def test_what_is_being_stored_is_not_said_to_be_gone(make: Callable[..., Replica]) -> None:
    one = make()
    read_once(one)
    one.manager.prepare_store([A], CONTEXT)
    told = Told(one)
    RemovedWriter(one.root, "f" * 16).append(IDENTITY.folder, [A])
    told.until(lambda: told.counted.get(metrics.GONE_KEYS))
    one.manager.absorb(WorkerReport(published={A: 1}))
    told.step()
    assert told.events == [("+", A)]


def test_a_missed_journal_is_found_out_by_a_lookup(make: Callable[..., Replica]) -> None:
    one = make(None)
    one.store([A, B], list(range(8)))
    told = Told(one)
    told.step()
    one.path(A).unlink()
    one.table.expire(float("inf"))  # as when the time of a hit is over
    assert one.lookup(A, B) == [LookupResult.MISS, LookupResult.HIT]
    told.step()
    assert told.events == [("+", A), ("+", B), ("-", A)]
    one.table.expire(float("inf"))
    assert one.lookup(A) == [LookupResult.MISS]
    told.step()
    assert told.events[3:] == []  # it was said


@pytest.mark.parametrize("damage", ["absent", "corrupt"])
def test_a_chunk_that_fails_to_load_is_said_to_be_gone_once(
    make: Callable[..., Replica], damage: str
) -> None:
    one = make(None)
    one.store([A, B], list(range(8)))
    told = Told(one)
    if damage == "absent":
        one.path(A).unlink()
    else:
        data = bytearray(one.path(A).read_bytes())
        data[5000] ^= 1
        one.path(A).write_bytes(data)
    assert one.load([A, B], list(range(8, 16)))
    one.manager.absorb(WorkerReport(failed={A}))  # a second rank
    told.step()
    assert told.events == [("+", A), ("+", B), ("-", A)]


def test_a_chunk_that_could_not_be_read_is_not_said_to_be_gone(
    make: Callable[..., Replica],
) -> None:
    one = make(None)
    one.store([A], list(range(4)))
    one.manager.absorb(WorkerReport(unread={A}, failed=set()))
    told = Told(one)
    told.step()
    assert told.events == [("+", A)]


def test_much_is_forgotten_in_many_steps(
    make: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction_module, "EVICTED_KEYS_A_STEP", 100)
    one = make()
    read_once(one)
    keys = [key(i) for i in range(1000, 1350)]
    told = Told(one)
    RemovedWriter(one.root, "f" * 16).append(IDENTITY.folder, keys)
    sizes = []
    deadline = time.monotonic() + 20
    while len(told.events) < len(keys):
        before = len(told.events)
        told.step()
        sizes.append(len(told.events) - before)
        assert time.monotonic() < deadline
    assert max(sizes) == 100
    assert told.events == [("-", k) for k in keys]


def test_no_event_is_kept_for_a_vllm_that_wants_none(make: Callable[..., Replica]) -> None:
    one = make(None)
    one.manager._events = type(one.manager._events)(are_wanted=False)
    one.store([A], list(range(4)))
    assert list(one.manager.take_events()) == []


def test_the_shelf_stays_within_its_limit_and_metrics_say_so(
    make: Callable[..., Replica],
) -> None:
    one = make(Limits(shelf_bytes=10 * FILE_BYTES))
    read_once(one)
    told = Told(one)
    told.until(
        lambda: any(v for k, v in told.counted.items() if k.startswith(metrics.EVICT_LEASE_HELD))
    )
    keys = [key(i) for i in range(2000, 2024)]
    for start in range(0, 24, 4):
        one.store(keys[start : start + 4], list(range(16)))
        told.until(lambda: len(list(one.root.rglob("*.kv"))) <= 10)
    told.until(lambda: [k for sign, k in told.events if sign == "-"])
    said = {"+": set(), "-": set()}
    told.until(lambda: told.counted.get(metrics.EVICTED_CHUNKS, 0) >= 14)
    told.until(lambda: len([1 for sign, _ in told.events if sign == "-"]) >= 14)
    for sign, each in told.events:
        said[sign].add(each)
    there = {k for k in keys if one.path(k).exists()}
    assert said["+"] == set(keys)
    assert said["-"] == set(keys) - there
    evicted = len(keys) - len(there)
    assert told.counted[metrics.EVICTED_CHUNKS] == evicted
    assert told.counted[metrics.EVICTED_BYTES] == evicted * FILE_BYTES
    assert metrics.EVICT_FAULTS not in told.counted


def test_the_holder_tells_state_volume_and_chunks_and_no_other_does(
    make: Callable[..., Replica],
) -> None:
    one = make(Limits(shelf_bytes=100 * FILE_BYTES))
    one.store([key(i) for i in range(3000, 3004)], list(range(16)))
    (duty,) = one.manager._eviction._duties
    gauges: dict[str, float] = {}

    def until(name: str, wanted: Callable[[float], bool]) -> None:
        """Of the gauge's last report, whatever its labels."""
        deadline = time.monotonic() + 20
        while not any(wanted(v) for k, v in gauges.items() if k.startswith(name)):
            assert time.monotonic() < deadline, (name, gauges)
            one.manager.on_schedule_end(STEP_END)
            if (stats := one.manager.get_stats()) is not None:
                gauges.update(stats.reduce())
            time.sleep(0.005)

    until(metrics.SHELF_CHUNKS, lambda files: files == 4)
    for name in (metrics.VOLUME_USED_BYTES, metrics.VOLUME_TOTAL_BYTES, metrics.EVICT_LEASE_HELD):
        until(name, lambda value: value > 0)
    until(metrics.EVICT_STATE, lambda state: state == 0)
    duty._turn._lease._folder.remove(str(duty._turn._lease._mine))  # another has taken it
    for name in (metrics.EVICT_LEASE_HELD, metrics.VOLUME_USED_BYTES, metrics.SHELF_CHUNKS):
        until(name, lambda value: value == 0)


def test_settings_become_limits() -> None:
    settings = Settings(evict_shelf_gb=1.5, evict_percent=80, evict_low_percent=70)
    assert limits_of(settings) == Limits(
        shelf_bytes=1_500_000_000, volume_percent=80, inode_percent=80, low_percent=70
    )
    assert not limits_of(Settings(evict=False))
    assert limits_of(Settings()).shelf_bytes is None


def test_an_engine_makes_a_namespace_again_that_somebody_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stores make the folder, but eviction counts none without a namespace.json."""
    monkeypatch.setattr(duty_module, "RENEW_SECONDS", 0.0)
    monkeypatch.setattr(duty_module, "WAKE_SECONDS", 0.05)
    settings = Settings(evict_lease_seconds=3.0)
    with Shelf([tmp_path / "a", tmp_path / "b"], IDENTITY) as shelf:
        duties = duties_of(settings, shelf)
        for duty in duties:
            duty.start()
        for name in ("a", "b"):
            file = tmp_path / name / IDENTITY.folder / "namespace.json"
            file.unlink()
            deadline = time.monotonic() + 20
            while not file.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert all(duty.close(20) for duty in duties)


def test_stores_that_fail_for_a_quota_ask_for_eviction_until_they_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """statvfs shows room; the quota of the directory is full."""
    monkeypatch.setattr(duty_module, "WAKE_SECONDS", 0.02)
    with quirk_mount(tmp_path, volume_bytes=1 << 30, quota_bytes=40 * FILE_BYTES) as mount:
        replica = Replica(mount.path / "shelf", limits=Limits(volume_percent=90))
        told = Told(replica)
        try:
            told.until((mount.path / "shelf" / "evict").exists)
            failed = succeeded = number = 0
            deadline = time.monotonic() + 60
            while not (failed and succeeded):
                number += 1
                replica.store([key(number)], list(range(4)))
                told.step()
                is_stored = replica.path(key(number)).exists()
                failed += not is_stored
                succeeded += is_stored and failed > 0
                assert time.monotonic() < deadline, (number, failed, told.counted)
                time.sleep(0.02)
            assert number > 30  # until then the quota held
            told.until(lambda: told.counted.get(metrics.EVICTED_CHUNKS))
            assert told.counted[metrics.ROOM_REQUESTS] >= 1
            assert told.counted[metrics.EVICTED_CHUNKS] <= 4  # a tenth in a minute
        finally:
            replica.close()
