"""Times of use by position: of every request's chunks the tail is older than the head."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.kv_offload.base import LookupResult, ReqContext  # noqa: E402

from kvshelf import make_key  # noqa: E402
from kvshelf.disk.usetime import MARK_STORED_NS, MARK_UNIT_NS, last_use, marked  # noqa: E402
from kvshelf.vllm.scheduler import touches  # noqa: E402
from tests.vllm.test_adapter import PER_CHUNK, Replica, key  # noqa: E402

CHUNK_TOKENS = 16
KEYS = [key(100 + i) for i in range(6)]
DAY_SECONDS = 86_400.0


knows_positions = pytest.mark.skipif(
    not hasattr(ReqContext, "set_offload_key_position"),
    reason="this vLLM does not say where in its request a chunk is",
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    made = Replica(tmp_path)
    yield made
    made.close()


def request(name: str, keys: list[bytes] = KEYS) -> ReqContext:
    context = ReqContext(req_id=name)
    for index, each in enumerate(keys):
        if hasattr(context, "set_offload_key_position"):
            context.set_offload_key_position(each, (index + 1) * CHUNK_TOKENS)
    return context


def used(replica: Replica, keys: list[bytes] = KEYS) -> list[int]:
    """Times of use in milliseconds before the first one's, when all touches are done."""
    assert replica.manager._shelf.inner.drain(10)
    times = [last_use(replica.path(k).stat()).ns for k in keys]
    return [(times[0] - each) // 1_000_000 for each in times]


def grow_old(replica: Replica, keys: list[bytes], seconds: float = DAY_SECONDS) -> None:
    for each in keys:
        time_ns = marked(time.time_ns() - int(seconds * 1e9), reused=False)
        os.utime(replica.path(each), ns=(time_ns, time_ns))


def age_seconds(replica: Replica, k: bytes) -> float:
    return time.time() - 1e-9 * last_use(replica.path(k).stat()).ns


def test_requests_that_are_never_heard_of_again_are_few(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM 0.26 stores a request's last chunk after it has said that the request is finished."""
    monkeypatch.setattr(touches, "REQUESTS_MAX", 10)
    for number in range(30):
        context = request(str(number), [])
        replica.manager.on_request_finished(context)
        replica.manager.prepare_store([key(number)], context)
    assert len(replica.manager._touches._requests) == 10


def store(replica: Replica, keys: list[bytes], context: Any) -> list[bytes]:
    return replica.store(keys, list(range(PER_CHUNK * len(keys))), context=context)


@knows_positions
def test_chunks_that_are_stored_are_older_the_further_back(replica: Replica) -> None:
    context = request("one")
    store(replica, KEYS[:2], context)
    time.sleep(0.05)  # written later, and yet one request's
    store(replica, KEYS[2:], context)
    assert used(replica) == [0, 1, 2, 3, 4, 5]
    assert age_seconds(replica, KEYS[0]) < 60


def test_a_stored_chunk_does_not_count_as_used_again(replica: Replica) -> None:
    store(replica, KEYS, request("one"))
    used(replica)
    for each in KEYS:
        found = replica.path(each).stat()
        assert not last_use(found).reused
        assert found.st_mtime_ns % MARK_UNIT_NS == MARK_STORED_NS  # the touch came


@knows_positions
def test_a_load_keeps_the_order(replica: Replica) -> None:
    store(replica, KEYS, request("one"))
    used(replica)
    grow_old(replica, KEYS)
    context = request("two")
    assert replica.lookup(*KEYS) == [LookupResult.HIT] * 6
    # The first two are in the GPU's own cache.
    assert replica.load(KEYS[2:], list(range(16)), context=context) == set()
    assert replica.manager.prepare_store(KEYS, context).keys_to_store == []
    assert used(replica) == [0, 1, 2, 3, 4, 5]
    assert age_seconds(replica, KEYS[0]) < 60


def test_what_was_used_a_moment_ago_is_not_touched_again(replica: Replica) -> None:
    store(replica, KEYS, request("one"))
    used(replica)
    grow_old(replica, KEYS, seconds=60)
    replica.manager.prepare_store(KEYS, request("two"))
    assert used(replica)[0] == 0
    assert age_seconds(replica, KEYS[0]) > 50


@knows_positions
def test_a_tail_behind_a_prefix_makes_the_prefix_newer(replica: Replica) -> None:
    """Although that was used a moment ago: its head must not go before the new tail."""
    store(replica, KEYS[:3], request("one"))
    used(replica, KEYS[:3])
    grow_old(replica, KEYS[:3], seconds=60)
    context = request("two")
    assert replica.manager.prepare_store(KEYS[:3], context).keys_to_store == []  # prefill, part 1
    assert used(replica, KEYS[:3])[0] == 0 and age_seconds(replica, KEYS[0]) > 50
    store(replica, KEYS[3:], context)
    assert used(replica) == [0, 1, 2, 3, 4, 5]
    assert age_seconds(replica, KEYS[0]) < 50


def test_a_dropped_store_leaves_nothing_behind(replica: Replica) -> None:
    context = request("one")
    replica.manager.prepare_store(KEYS, context)
    assert sum(record.touch_ns > 0 for record in replica.table.records.values()) == 6
    from kvshelf.vllm.report import WorkerReport

    replica.manager.absorb(WorkerReport(not_stored=set(KEYS)))
    replica.manager.on_request_finished(context)
    assert not any(record.touch_ns for record in replica.table.records.values())
    assert replica.manager._touches._requests == {}


def test_a_vllm_that_does_not_say_positions(replica: Replica) -> None:
    class Old:  # 0.26
        req_id = "old"

    two_groups = [make_key(bytes([i]) * 32, group) for group in (0, 1) for i in range(2)]
    from kvshelf.vllm import compat

    assert compat.end_tokens(Old(), two_groups, CHUNK_TOKENS) == [16, 32, 16, 32]
