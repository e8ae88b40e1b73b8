"""Manager and worker together on one shelf, without an engine: stores, hits, failures, healing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.kv_offload.base import (  # noqa: E402
    GPULoadStoreSpec,
    LookupResult,
    ReqContext,
    ScheduleEndContext,
)

from kvshelf import EngineConfig, Identity, make_key, metrics  # noqa: E402
from kvshelf.config import Settings  # noqa: E402
from kvshelf.disk.layout import chunk_path  # noqa: E402
from kvshelf.shelf import Shelf  # noqa: E402
from kvshelf.upkeep.evict.duty import EvictionDuty  # noqa: E402
from kvshelf.upkeep.evict.limits import Limits  # noqa: E402
from kvshelf.vllm.compat import KeyRun  # noqa: E402
from kvshelf.vllm.report import WorkerReport  # noqa: E402
from kvshelf.vllm.scheduler.chunk_table import ChunkTable  # noqa: E402
from kvshelf.vllm.scheduler.manager import KvshelfManager  # noqa: E402
from kvshelf.vllm.specs import ChunkKeysSpec  # noqa: E402
from kvshelf.vllm.worker.worker import KvshelfWorker, blocks_of  # noqa: E402

BLOCKS, BLOCK_BYTES, PER_CHUNK, LAYERS = 32, 4096, 4, 3
LEASE_SECONDS = 3.0
SETTINGS = Settings()
CONTEXT = ReqContext(req_id="r")
STEP_END = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())
IDENTITY = Identity({"model": "m"})


def key(i: int, group: int = 0) -> bytes:
    return make_key(i.to_bytes(32, "big"), group)


def run_of(*keys: bytes) -> KeyRun:
    return KeyRun(list(keys), chunk_tokens=16, is_prefix=True)


@dataclass
class Replica:
    """The scheduler's and one worker's side of an engine, with its own KV cache."""

    root: Path
    groups: int = 1
    limits: Limits | None = None  # with any, it evicts in the background

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        self.memory = [
            [rng.integers(0, 256, (BLOCKS, BLOCK_BYTES), dtype=np.uint8) for _ in range(LAYERS)]
            for _ in range(self.groups)
        ]
        config = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=2)
        self.table = ChunkTable(
            hit_ttl_seconds=30, miss_ttl_seconds=0.05, failed_ttl_seconds=60, keys_max=1000
        )
        self.manager = KvshelfManager(
            Shelf(self.root, IDENTITY, config=config),
            self.table,
            SETTINGS,
            chunk_bytes=LAYERS * BLOCK_BYTES * PER_CHUNK,
            chunk_tokens=16,
            emit_events=True,
            duties=()
            if self.limits is None
            else [
                EvictionDuty(
                    self.root, IDENTITY.folder, limits=self.limits, lease_seconds=LEASE_SECONDS
                )
            ],
        )
        self.worker = KvshelfWorker(
            Shelf.of_arrays(self.root, IDENTITY, self.memory, config=config),
            group_ids=range(self.groups),
            blocks_per_chunk=PER_CHUNK,
            load_timeout_seconds=10,
            close_timeout_seconds=5,
        )
        self.jobs = 0

    def lookup(self, *keys: bytes) -> list[LookupResult]:
        """Ask as vLLM does: once a step, until no answer is RETRY."""
        deadline = time.monotonic() + 10
        self.manager.on_schedule_end(STEP_END)  # the end of an earlier step
        while True:
            answers = [self.manager.lookup(k, CONTEXT) for k in keys]
            self.manager.on_schedule_end(STEP_END)
            if LookupResult.RETRY not in answers:
                return answers
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def store(
        self,
        keys: list[bytes],
        ids: list[int],
        sizes: list[int] | None = None,
        context: ReqContext = CONTEXT,
    ) -> list[bytes]:
        output = self.manager.prepare_store(keys, context)
        sizes = sizes or [len(ids)]
        self.jobs += 1
        spec = GPULoadStoreSpec(ids, group_sizes=sizes, block_indices=[0] * len(sizes))
        assert self.worker.submit_store(self.jobs, spec, output.store_spec)
        self.finish(self.jobs)
        self.worker._shelf.drain(10)
        self.step()
        return list(output.keys_to_store)

    def load(
        self, keys: list[bytes], ids: list[int], first: int = 0, context: ReqContext = CONTEXT
    ) -> set[int]:
        """Load and return the blocks that vLLM must recompute."""
        spec = self.manager.prepare_load(keys, context)
        self.jobs += 1
        blocks = GPULoadStoreSpec(ids, group_sizes=[len(ids)], block_indices=[first])
        assert self.worker.submit_load(self.jobs, spec, blocks)
        self.finish(self.jobs)
        failed = blocks_of(self.worker.take_failed_loads())
        self.step()
        return failed

    def finish(self, job_id: int) -> None:
        deadline = time.monotonic() + 10
        while not any(r.job_id == job_id and r.success for r in self.worker.get_finished()):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def step(self) -> WorkerReport | None:
        """Carry the worker's report to the manager."""
        assert self.worker.get_finished() == []
        report = self.worker.take_report()
        if report is not None:
            self.manager.absorb(report)
        return report

    def path(self, k: bytes) -> Path:
        return self.root / chunk_path(IDENTITY.folder, 0, k)

    def close(self) -> None:
        self.worker.shutdown()
        self.manager.shutdown()


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    pair = Replica(tmp_path), Replica(tmp_path)
    for array in (a for group in pair[1].memory for a in group):
        array[:] = 0
    yield pair
    for replica in pair:
        replica.close()


A, B = key(1), key(2)
IDS = [3, 4, 5, 6, 7, 8, 9, 10]


def rows(replica: Replica, ids: list[int]) -> np.ndarray[Any, Any]:
    return np.stack([layer[ids] for layer in replica.memory[0]])


def test_one_replica_stores_and_the_other_loads(replicas: tuple[Replica, Replica]) -> None:
    one, two = replicas
    assert two.lookup(A, B) == [LookupResult.MISS, LookupResult.MISS]
    assert one.store([A, B], IDS) == [A, B]
    time.sleep(0.06)  # past the time to live of a miss
    assert two.lookup(A, B) == [LookupResult.HIT, LookupResult.HIT]
    there = [20, 21, 22, 23, 24, 25, 26, 27]
    assert two.load([A, B], there) == set()
    np.testing.assert_array_equal(rows(two, there), rows(one, IDS))


def test_the_first_answer_never_waits(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    assert one.manager.lookup(A, CONTEXT) is LookupResult.RETRY


def test_keys_asked_for_early_are_answered_at_once(replicas: tuple[Replica, Replica]) -> None:
    one, two = replicas
    one.store([A], IDS[:4])
    two.manager.prefetch([run_of(A, B)])
    two.manager.prefetch([run_of(A, B)])  # the second request with this prefix asks nothing
    assert len(two.manager._lookups._in_flight) == 1
    time.sleep(0.1)
    assert [two.manager.lookup(k, CONTEXT) for k in (A, B)] == [LookupResult.HIT, LookupResult.MISS]


def test_what_is_stored_is_not_stored_again(replicas: tuple[Replica, Replica]) -> None:
    one, two = replicas
    one.store([A], IDS[:4])
    assert one.manager.prepare_store([A, B], CONTEXT).keys_to_store == [B]
    two.lookup(A)
    assert two.manager.prepare_store([A, B], CONTEXT).keys_to_store == [B]


def test_a_stored_chunk_is_a_hit_at_once_and_an_event(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    one.store([A], IDS[:4])
    assert one.manager.lookup(A, CONTEXT) is LookupResult.HIT
    (event,) = one.manager.take_events()
    assert list(event.keys) == [A]
    assert not event.removed
    assert list(one.manager.take_events()) == []


def test_a_damaged_chunk_is_recomputed_missed_and_healed(
    replicas: tuple[Replica, Replica],
) -> None:
    one, two = replicas
    one.store([A, B], IDS)
    assert two.lookup(A, B) == [LookupResult.HIT] * 2
    with one.path(A).open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    there = [20, 21, 22, 23, 24, 25, 26, 27]
    # The blocks of the damaged chunk and of the one after it.
    assert two.load([A, B], there) == set(there)
    assert two.lookup(A, B) == [LookupResult.MISS, LookupResult.HIT]
    assert two.manager.prepare_store([A, B], CONTEXT).keys_to_store == [A]
    two.table.dropped(A)
    assert two.store([A], there[:4]) == [A]
    assert two.manager.lookup(A, CONTEXT) is LookupResult.HIT
    assert f"'{metrics.HEALED_CHUNKS}': 1" in str(two.manager.get_stats().reduce())


def test_blocks_before_the_damage_are_kept(replicas: tuple[Replica, Replica]) -> None:
    one, two = replicas
    one.store([A, B], IDS)
    two.lookup(A, B)
    one.path(B).unlink()
    there = [20, 21, 22, 23, 24, 25, 26, 27]
    assert two.load([A, B], there) == {24, 25, 26, 27}
    np.testing.assert_array_equal(rows(two, there[:4]), rows(one, IDS[:4]))


def test_a_load_that_begins_inside_a_chunk(replicas: tuple[Replica, Replica]) -> None:
    one, two = replicas
    one.store([A, B], IDS)
    assert two.load([A, B], [20, 21, 22, 23, 24], first=3) == set()
    np.testing.assert_array_equal(rows(two, [20, 21, 22, 23, 24]), rows(one, IDS[3:]))


def test_unclear_blocks_fail_the_whole_load(replicas: tuple[Replica, Replica]) -> None:
    one, two = replicas
    one.store([A, B], IDS)
    assert two.load([A, B], [20, 21, 22]) == {20, 21, 22}
    assert not rows(two, [20, 21, 22]).any()


def test_a_store_that_cannot_be_mapped_is_dropped_not_guessed(
    replicas: tuple[Replica, Replica],
) -> None:
    one, _ = replicas
    one.store([A, B], IDS[:7])
    assert not one.path(A).exists()
    assert not one.path(B).exists()
    assert one.manager.prepare_store([A, B], CONTEXT).keys_to_store == [A, B]


def test_wait_lets_go_of_blocks(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    output = one.manager.prepare_store([A], CONTEXT)
    spec = GPULoadStoreSpec(IDS[:4], group_sizes=[4], block_indices=[0])
    one.worker.submit_store(77, spec, output.store_spec)
    one.worker.wait({77, 1234})
    assert [r.job_id for r in one.worker.get_finished()] == [77]


def test_an_engine_that_refuses_is_a_miss_not_a_crash(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = replicas

    def refuse(*_: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(one.worker._shelf, "submit_load", refuse)
    monkeypatch.setattr(one.worker._shelf, "submit_store", refuse)
    assert one.load([A], [20, 21, 22, 23]) == {20, 21, 22, 23}
    assert one.manager.admission._waiting_chunks == 0  # a load that never began
    assert one.store([A], IDS[:4]) == [A]
    assert one.manager.prepare_store([A], CONTEXT).keys_to_store == [A]


def test_a_lookup_that_is_refused_is_a_miss_not_a_crash(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = replicas
    one.manager._shelf.inner.close()  # every call raises from now on
    assert one.lookup(A, B) == [LookupResult.MISS] * 2
    one.manager.prefetch([run_of(key(9))])
    one.manager.touch([A], CONTEXT)
    assert one.manager.prepare_load([A], CONTEXT).keys == (A,)


def test_metrics_tell_what_happened(replicas: tuple[Replica, Replica]) -> None:
    one, two = replicas
    one.store([A], IDS[:4])
    two.lookup(A, B)
    two.load([A], [20, 21, 22, 23])
    counted = two.manager.get_stats().reduce()
    text = " ".join(f"{name}={value}" for name, value in counted.items())
    assert metrics.LOOKUPS in text
    assert metrics.LOAD_BYTES in text
    assert two.manager.get_stats() is None


def test_reset_forgets_but_deletes_nothing(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    one.store([A], IDS[:4])
    one.manager.reset_cache()
    assert one.path(A).exists()
    assert one.lookup(A) == [LookupResult.HIT]


def test_what_was_known_before_a_pause_is_asked_anew(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine without requests makes no steps, and steps are what ends the time of an answer."""
    one, two = replicas
    one.store([A], list(range(4)))
    assert two.lookup(A, B) == [LookupResult.HIT, LookupResult.MISS]
    one.path(A).unlink()
    one.store([B], list(range(4)))
    before = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: before + 3600)
    two.manager.on_new_request(CONTEXT)
    assert [two.manager.lookup(each, CONTEXT) for each in (A, B)] == [LookupResult.RETRY] * 2
    monkeypatch.undo()
    assert two.lookup(A, B) == [LookupResult.MISS, LookupResult.HIT]


def test_a_prefix_that_somebody_removed_is_stored_by_one_request(
    replicas: tuple[Replica, Replica],
) -> None:
    """A lookup stops at the first missing chunk, and says nothing of those behind it."""
    one = replicas[0]
    keys = [key(i) for i in range(1, 9)]
    one.store(keys, list(range(32)))
    for each in keys:
        one.path(each).unlink()
    one.table.expire(float("inf"))  # their time is over
    one.manager.prefetch([run_of(*keys)])
    assert one.lookup(keys[0]) == [LookupResult.MISS]
    assert one.store(keys, list(range(32))) == keys
    assert all(one.path(each).exists() for each in keys)


def test_keys_survive_the_way_to_the_worker() -> None:
    import pickle

    assert pickle.loads(pickle.dumps(ChunkKeysSpec([A, B]))).keys == (A, B)
