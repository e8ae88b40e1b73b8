"""Requests that are left alone: nothing is looked up, touched or stored for them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.kv_offload.base import LookupResult, ReqContext  # noqa: E402

from kvshelf import metrics  # noqa: E402
from kvshelf.vllm import plugin, requests  # noqa: E402
from kvshelf.vllm.requests import LeftAlone  # noqa: E402

from .jobs import transfer_job  # noqa: E402
from .test_adapter import Replica, key  # noqa: E402
from .test_tier import Engine  # noqa: E402

KEYS = [key(1), key(2)]
ALONE = "a reason"


def test_a_manager_neither_loads_nor_stores_nor_touches_for_such_a_request(tmp_path: Path) -> None:
    replica = Replica(tmp_path)
    manager = replica.manager
    try:
        replica.store(KEYS, list(range(8)))
        other = ReqContext(req_id="alone")
        manager.on_new_request(other)
        manager.get_stats()
        manager.leave_alone("alone", ALONE)
        manager.leave_alone("alone", ALONE)
        counted = manager.get_stats().reduce()
        assert counted[f"{metrics.REQUESTS_LEFT_ALONE}:('{ALONE}',)"] == 1
        manager.begin_scan("alone")
        assert {manager.lookup(k, other) for k in KEYS} == {LookupResult.MISS}
        assert not manager.prepare_store([key(3)], other).keys_to_store
        manager.on_request_finished(other)
        # vLLM offers the last chunks when the request has ended.
        assert not manager.prepare_store([key(3)], other).keys_to_store
        manager.on_new_request(other)  # another request of this id
        assert manager.prepare_store([key(3)], other).keys_to_store == [key(3)]
    finally:
        replica.close()


def test_a_tier_neither_loads_nor_stores_for_such_a_request(tmp_path: Path) -> None:
    plugin.register()
    engine = Engine(tmp_path)
    try:
        engine.run("store", KEYS, [0, 1])
        engine.tier.leave_alone("r", ALONE)
        assert engine.lookup(*KEYS) == [LookupResult.MISS] * 2
        engine.tier.submit_store(transfer_job(9, [key(3)], [2], is_load=False))
        (result,) = engine.tier.get_finished_jobs()
        assert result.success
        assert len(list(tmp_path.rglob("*.kv"))) == 2
    finally:
        engine.tier.shutdown()


def test_ids_of_ended_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "ENDED_MAX", 2)
    left = LeftAlone()
    for name in "abcd":
        assert left.add(name)
    assert not left.add("d")
    for name in "abc":
        left.ends(name)
    assert [name in left for name in "abcd"] == [False, True, True, True]
