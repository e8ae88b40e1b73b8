"""Audits at the adapter's level: a chunk with the wrong content under a right key and checksum."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
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
    TransferResult,
)

from kvshelf import metrics  # noqa: E402
from kvshelf.config import Settings  # noqa: E402
from kvshelf.disk.keys import masked  # noqa: E402
from kvshelf.vllm.scheduler.audit import Audits  # noqa: E402
from kvshelf.vllm.stats import StatsSink  # noqa: E402
from kvshelf.vllm.worker import auditor  # noqa: E402
from tests.harness.forge import forge, payload_of  # noqa: E402

from .audited import LOG, SETTINGS, Audited, captured  # noqa: E402
from .test_adapter import CONTEXT, IDENTITY, LAYERS, PER_CHUNK, key  # noqa: E402

MISS, HIT = LookupResult.MISS, LookupResult.HIT
A, B, C = key(1), key(2), key(3)
HERE, THERE = list(range(8)), list(range(16, 24))


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Audited]:
    made = Audited(tmp_path)
    yield made
    made.close()


def test_a_right_chunk_is_equal_and_stays(replica: Audited) -> None:
    assert replica.store([A, B], HERE) == [A, B]
    seen = replica.path(A).stat()
    replica.counted()
    replica.pick(A, B)
    replica.compute(THERE, HERE)
    assert replica.store([A, B], THERE) == [A, B]  # what vLLM gives the worker blocks of
    assert replica.settled() == {"equal": 2}
    assert replica.path(A).stat().st_ino == seen.st_ino
    assert replica.lookup(A, B) == [HIT, HIT]


def test_a_chunk_of_another_prompt_is_found(
    replica: Audited, caplog: pytest.LogCaptureFixture
) -> None:
    """Its key and its checksums are right: nothing else can find it."""
    replica.store([A, B], HERE)
    forge(replica.path(B), payload_of(replica.path(A)))
    replica.counted()
    replica.pick(A, B)
    replica.compute(THERE, HERE)
    with captured(caplog.handler):
        replica.store([A, B], THERE)
        assert replica.settled() == {"equal": 1, "different": 1}
    (line,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    for part in (B[:-4].hex(), "rank 0", IDENTITY.folder, str(replica.root), "removed"):
        assert part in line.getMessage()
    assert replica.path(A).exists() and not replica.path(B).exists()
    assert replica.lookup(A, B) == [HIT, MISS]
    assert [e.removed for e in replica.manager.take_events() if list(e.keys) == [B]][-1]
    # A later request stores it again.
    assert replica.store([A, B], THERE[4:], context=ReqContext(req_id="q")) == [B]
    assert replica.lookup(B) == [HIT]


@pytest.mark.parametrize("block", range(PER_CHUNK))
def test_one_wrong_block_is_found(replica: Audited, block: int) -> None:
    """Bytes that another request has written meanwhile, as in a store that came too late."""
    replica.compute([block], [9])
    replica.store([A], HERE[:4])
    replica.memory[0][0][block] = replica.memory[0][0][10]
    replica.pick(A)
    replica.store([A], HERE[:4])
    assert replica.settled()["different"] == 1
    assert not replica.path(A).exists()


def test_rounding_is_within_the_tolerance(replica: Audited) -> None:
    replica.store([A], HERE[:4])
    replica.counted()
    replica.pick(A)
    for layer in replica.memory[0]:
        layer[THERE] = layer[HERE]
        layer.view(np.float32)[THERE] *= 1 + 1e-6
    replica.store([A], THERE[:4])
    assert replica.settled() == {"within_tolerance": 1}
    assert replica.path(A).exists()


def test_an_audited_chunk_is_never_stored(replica: Audited) -> None:
    """Somebody evicts it between lookup and comparison: a miss, later, and no failure."""
    replica.store([A], HERE[:4])
    replica.counted()
    replica.pick(A)
    replica.path(A).unlink()
    replica.store([A], THERE[:4])
    assert replica.settled() == {"skipped": 1}
    assert not replica.path(A).exists()
    assert replica.lookup(A) == [MISS]
    assert replica.store([A], HERE[:4], context=ReqContext(req_id="q")) == [A]
    assert replica.path(A).exists()


def test_a_damaged_chunk_is_a_failed_load_not_a_failed_audit(replica: Audited) -> None:
    replica.store([A], HERE[:4])
    replica.counted()
    replica.pick(A)
    replica.path(A).write_bytes(bytes(9000))
    replica.store([A], THERE[:4])
    assert replica.settled() == {"skipped": 1}
    assert not replica.path(A).exists()
    assert replica.lookup(A) == [MISS]


def test_what_was_never_on_the_shelf_is_stored_beside_audits(replica: Audited) -> None:
    replica.store([A], HERE[:4])
    replica.counted()
    replica.pick(A)
    replica.compute(THERE[:4], HERE[:4])
    assert replica.store([A, B], THERE) == [A, B]
    assert replica.settled() == {"equal": 1}
    assert replica.lookup(A, B) == [HIT, HIT]


def test_audits_beyond_their_memory_are_skipped(
    replica: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    judge = replica.auditor._judge

    def wait(task: Any) -> Any:
        assert go.wait(10)
        return judge(task)

    monkeypatch.setattr(replica.auditor, "_judge", wait)
    keys = [key(i) for i in range(1, 8)]
    ids = list(range(28))
    replica.store(keys, ids)
    replica.counted()
    assert replica.auditor.slots == (1 << 20) // (2 * LAYERS * 4096 * PER_CHUNK)
    while len(replica.auditor._free) > 5:
        replica.auditor._free.pop()
    replica.pick(*keys)
    replica.store(keys, ids)  # done, though nothing was compared yet
    go.set()
    replica.auditor.slots = 5
    assert replica.settled() == {"equal": 5, "skipped": 2}


def test_a_fault_of_the_comparison_ends_nothing(
    replica: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.store([A, B], HERE)
    replica.counted()
    replica.pick(A)
    monkeypatch.setattr(auditor, "compare", lambda *_: 1 / 0)
    replica.store([A], HERE[:4])
    assert replica.settled() == {"skipped": 1}
    replica.pick(B, context=ReqContext(req_id="q"))
    monkeypatch.setattr(replica.auditor._computed, "copy", lambda *_: 1 / 0)
    replica.store([B], HERE[4:], context=ReqContext(req_id="q"))
    assert replica.settled() == {"skipped": 1}


def test_damage_on_the_way_removes_nothing(
    replica: Audited, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory and networks damage bytes too: what differs is read a second time."""
    replica.store([A], HERE[:4])
    replica.counted()
    replica.pick(A)
    load, seen = replica.auditor._shelf.load, []

    def load_damaged(chunks: Any) -> Any:
        statuses = load(chunks)
        if not seen:
            replica.auditor._memory._stored[:] = 0
        seen.append(1)
        return statuses

    monkeypatch.setattr(replica.auditor._shelf, "load", load_damaged)
    with captured(caplog.handler):
        replica.store([A], HERE[:4])
        assert replica.settled() == {"equal": 1}
    assert "read again: equal" in caplog.text
    assert len(seen) == 2 and replica.path(A).exists()


@pytest.mark.parametrize("what", ["replaced", "link", "link above", "no marker"])
def test_only_the_very_file_is_removed(
    replica: Audited,
    what: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica.store([A, B], HERE)
    path, aside = replica.path(B), tmp_path_factory.mktemp("aside") / "aside"
    forge(path, payload_of(replica.path(A)))
    wrong = path.read_bytes()
    replica.pick(B)
    load, loads = replica.auditor._shelf.load, []

    def load_and_meddle(chunks: Any) -> Any:
        statuses = load(chunks)
        loads.append(1)
        if what == "replaced" and len(loads) == 2:
            path.rename(aside)
            path.write_bytes(wrong)
        elif what == "link" and len(loads) == 1:
            path.rename(aside)
            path.symlink_to(aside)
        elif what == "link above" and len(loads) == 1:
            path.parent.rename(aside)
            path.parent.symlink_to(aside)
        elif what == "no marker" and len(loads) == 1:
            (replica.root / "kvshelf.json").rename(aside)
        return statuses

    monkeypatch.setattr(replica.auditor._shelf, "load", load_and_meddle)
    with captured(caplog.handler):
        replica.store([B], HERE[4:])
        assert replica.settled()["different"] == 1
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "removed" not in line.replace("cannot be removed", "")
    assert path.read_bytes() == wrong
    assert replica.lookup(B) == [MISS]  # not believed in, whatever became of the file


def test_too_many_wrong_chunks_turn_kvshelf_off(
    replica: Audited, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [key(i) for i in range(1, 5)]
    replica.store(keys, list(range(16)))
    for each in keys[1:]:
        forge(replica.path(each), payload_of(replica.path(keys[0])))
    replica.pick(*keys)
    with captured(caplog.handler):
        replica.store(keys, list(range(16)))
        stats = replica.settled()
    assert stats["different"] == 3
    said = [r for r in caplog.records if "kvshelf is off" in r.getMessage()]
    assert len(said) == 1 and said[0].levelno == logging.ERROR
    assert replica.manager.audits.is_off
    replica.manager.begin_scan("q")
    assert replica.manager.lookup(keys[0], ReqContext(req_id="q")) is MISS
    replica.manager.prefetch([])
    assert replica.store([key(9)], HERE[:4], context=ReqContext(req_id="q")) == []
    assert not replica.path(key(9)).exists()


def test_the_state_is_a_metric() -> None:
    sink = StatsSink()
    audits = Audits(SETTINGS, sink, LOG)
    assert f"{metrics.AUDIT_OFF}" in str(sink.take().reduce())
    assert not audits.is_off
    Audits(Settings(), sink, LOG)
    assert sink.take() is None  # an engine that does not audit says nothing


def test_blocks_are_vllms_again_only_when_they_were_copied(replica: Audited) -> None:
    """As on a GPU, whose copies go on after the submission."""

    class Copy:
        done = False
        waited = False

        def query(self) -> bool:
            return self.done

        def synchronize(self) -> None:
            self.waited = True
            assert released.wait(10)

    released = threading.Event()
    replica.store([A, B], HERE)
    replica.pick(A)
    copy = Copy()
    replica.auditor._computed.copy = lambda *_: copy
    output = replica.manager.prepare_store([A, key(5)], CONTEXT)
    spec = GPULoadStoreSpec(THERE, group_sizes=[8], block_indices=[0])
    assert replica.worker.submit_store(90, spec, output.store_spec)
    replica.worker._shelf.drain(10)
    assert replica.worker.get_finished() == []
    copy.done = True
    released.set()
    assert [r.job_id for r in replica.worker.get_finished()] == [90]
    assert replica.worker.get_finished() == []


def test_wait_waits_for_the_copies(replica: Audited) -> None:
    waited = []

    class Copy:
        def query(self) -> bool:
            return bool(waited)

        def synchronize(self) -> None:
            waited.append(threading.current_thread())

    replica.store([A], HERE[:4])
    replica.pick(A)
    replica.auditor._computed.copy = lambda *_: Copy()
    replica.auditor._tasks = queue.SimpleQueue()  # the thread never hears of it
    output = replica.manager.prepare_store([A], CONTEXT)
    spec = GPULoadStoreSpec(THERE[:4], group_sizes=[4], block_indices=[0])
    replica.worker.submit_store(90, spec, output.store_spec)
    assert replica.worker.get_finished() == []
    replica.worker.wait({90})
    assert waited == [threading.current_thread()]
    assert [r.job_id for r in replica.worker.get_finished()] == [90]


def test_other_jobs_are_not_held_back(replica: Audited) -> None:
    replica.auditor._copying[1] = [type("C", (), {"query": lambda self: False})()]
    done = [TransferResult(1, True), TransferResult(2, True)]
    assert [r.job_id for r in replica.auditor.gate(done)] == [2]
    replica.auditor._copying.clear()
    replica.auditor._copying[3] = []
    assert [r.job_id for r in replica.auditor.gate([])] == [1]


def test_a_picked_request_is_told_miss_until_it_ends(replica: Audited) -> None:
    replica.store([A, B], HERE)
    replica.counted()
    replica.pick(A, B)
    replica.manager.begin_scan(CONTEXT.req_id, 0)
    assert replica.manager.lookup(A, CONTEXT) is MISS
    replica.manager.begin_scan("other", 0)
    assert replica.manager.lookup(A, ReqContext(req_id="other")) is HIT
    replica.manager.on_request_finished(CONTEXT)
    assert replica.counted() == {"skipped": 2}  # never offered
    replica.manager.begin_scan(CONTEXT.req_id, 0)
    assert replica.manager.lookup(A, CONTEXT) is HIT


def test_kv_of_unknown_weights_is_not_compared(
    replica: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker sees that its weights have changed before the scheduler knows."""
    replica.store([A], HERE[:4])
    replica.counted()
    replica.pick(A)
    replica.compute(THERE[:4], HERE[4:])
    monkeypatch.setattr(replica.worker, "_knows_weights", lambda _: False)
    replica.store([A], THERE[:4])
    assert replica.settled() == {"skipped": 1}
    assert replica.path(A).exists()


def test_chunks_of_a_later_epoch_are_audited_under_their_own_keys(replica: Audited) -> None:
    mask = bytes(range(32)) + bytes(4)
    replica.manager._shelf.mask = mask
    replica.store([A, B], HERE)
    named = [masked(each, mask) for each in (A, B)]
    forge(replica.path(named[1]), payload_of(replica.path(named[0])))
    replica.counted()
    replica.pick(A, B)
    replica.compute(THERE, HERE)
    replica.store([A, B], THERE)
    assert replica.settled() == {"equal": 1, "different": 1}
    assert not replica.path(named[1]).exists()
    assert replica.lookup(A, B) == [HIT, MISS]
