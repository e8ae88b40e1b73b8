"""Requests that are left alone: nothing is looked up, touched or stored for them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange  # noqa: E402
from vllm.pooling_params import PoolingParams  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.v1.kv_offload.base import LookupResult, OffloadingManager, ReqContext  # noqa: E402
from vllm.v1.request import Request  # noqa: E402

from kvshelf import ConfigError, metrics  # noqa: E402
from kvshelf.vllm import guards, plugin  # noqa: E402
from kvshelf.vllm.adopt import check_role  # noqa: E402
from kvshelf.vllm.scheduler import requests  # noqa: E402
from kvshelf.vllm.scheduler.requests import Hashing, LeftAlone  # noqa: E402
from kvshelf.vllm.stats import StatsSink  # noqa: E402

from . import neighbor  # noqa: E402
from .jobs import transfer_job  # noqa: E402
from .neighbor import NEIGHBOR  # noqa: E402
from .rig import BLOCK, CHUNK, Rig, ours, prompt_of, rigs  # noqa: E402
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
        engine.tier.manager.leave_alone("r", ALONE)
        assert engine.lookup(*KEYS) == [LookupResult.MISS] * 2
        engine.tier.submit_store(transfer_job(9, [key(3)], [2], is_load=False))
        (result,) = engine.tier.get_finished_jobs()
        assert result.job_id == 9
        assert len(list(tmp_path.rglob("*.kv"))) == 2
    finally:
        engine.tier.shutdown()


def test_ids_of_ended_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "ENDED_MAX", 2)
    left = LeftAlone(StatsSink(), logging.getLogger())
    for name in "abcdd":
        left.add(name, ALONE)
    for name in "abc":
        left.ends(name)
    assert [name in left for name in "abcd"] == [False, True, True, True]


# Requests through vLLM's real scheduler

BOTH_OFF = {"enable_prefix_caching": False}
SHARED, LEFT = None, "left alone"


def picture(identifier: str) -> list[Any]:
    return [
        MultiModalFeatureSpec(
            data=None,
            modality="image",
            identifier=identifier,
            mm_position=PlaceholderRange(offset=4, length=20),
        )
    ]


def given(name: str) -> dict[str, Any]:
    """Arguments of a request that carries what ``name`` says."""
    return {
        "nothing": {},
        "cache_salt": {"cache_salt": "s"},
        "prompt_logprobs": {"sampling": {"prompt_logprobs": 1}},
        "remote decode": {"sampling": transfer(do_remote_decode=True)},
        "remote prefill": {"sampling": transfer(do_remote_prefill=True)},
        "streaming input": {"resumable": True},
        "embeddings among tokens": {
            "prompt_is_token_ids": [i % 2 == 0 for i in range(len(PROMPT))],
            "prompt_embeds": torch.zeros(len(PROMPT), 8),
        },
        "picture by content": {"mm_features": picture("ab" * 32)},
        "picture by the user's name": {"mm_features": picture("the-user's-cat")},
        "picture by a counter": {"mm_features": picture("17-image-0")},
        "picture by a counter, adapter in front": {"mm_features": picture("a:17-image-0")},
    }[name]


def transfer(**params: Any) -> dict[str, Any]:
    return {"extra_args": {"kv_transfer_params": params}}


PROMPT = prompt_of(2 * CHUNK + 3)


@pytest.mark.parametrize(
    ("name", "engine", "reason"),
    [
        ("nothing", {}, SHARED),
        ("nothing", BOTH_OFF, SHARED),
        ("cache_salt", {}, SHARED),
        ("remote decode", {}, SHARED),
        ("remote prefill", {}, requests.REMOTE_PREFILL),
        ("streaming input", {}, requests.STREAMING_INPUT),
        ("embeddings among tokens", {}, requests.MIXED_EMBEDS),
        ("picture by content", {}, SHARED),
        ("picture by content", BOTH_OFF, requests.COUNTED_MEDIA),
        ("picture by the user's name", {}, SHARED),
        ("picture by the user's name", BOTH_OFF, SHARED),
        ("picture by a counter", {}, requests.COUNTED_MEDIA),
        ("picture by a counter", BOTH_OFF, requests.COUNTED_MEDIA),
        ("picture by a counter, adapter in front", {}, requests.COUNTED_MEDIA),
    ],
)
def test_what_a_request_carries_decides_whether_it_shares(
    tmp_path: Path, name: str, engine: dict[str, Any], reason: str | None
) -> None:
    one = Rig(tmp_path / "shelf", tmp_path / "model", **engine)
    with rigs(one):
        asked = one.add(PROMPT, **given(name)) if "picture" not in name else None
        if asked is None:  # without an encoder in the rig: what the connector decides of it
            request = Request(
                "r", list(PROMPT), SamplingParams(), None, block_hasher=one._hasher, **given(name)
            )
            assert requests.reason_to_leave_alone(Hashing.of(one.config), request) == reason
            return
        one.run() if reason != requests.STREAMING_INPUT else [one.step() for _ in range(8)]
        if reason == requests.STREAMING_INPUT:
            one.abort(asked)
        one.settle()
        assert len(one.chunk_files()) == (2 if reason is SHARED else 0)
        assert (asked in one.manager()._left_alone) == (reason is not SHARED)


def test_every_input_of_a_request_is_judged() -> None:
    assert requests.request_inputs() <= requests.JUDGED_INPUTS
    assert requests.pooling_inputs() <= requests.JUDGED_POOLING


def test_inputs_that_nobody_judged_are_left_alone(tmp_path: Path) -> None:
    request = Request("r", [1], SamplingParams(), None)
    assert requests.reason_to_leave_alone(Hashing(), request) is None
    request.additional_information = {"speaker": 3}
    found = requests.reason_to_leave_alone(Hashing(inputs=("additional_information",)), request)
    assert found == requests.UNKNOWN_INPUT
    fork = type("ForkedRequest", (Request,), {})("r", [1], SamplingParams(), None)
    assert requests.reason_to_leave_alone(Hashing(), fork) == requests.UNKNOWN_INPUT
    pooling = PoolingParams(extra_kwargs={"compressed_token_type_ids": 7})
    typed = Request("r", [1], None, pooling)
    assert requests.reason_to_leave_alone(Hashing(), typed) == requests.POOLING_INPUT


@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize("role", ["kv_both", "kv_consumer", "kv_producer"])
def test_a_role_decides_who_loads_and_who_stores(tmp_path: Path, role: str, child: bool) -> None:
    root = tmp_path / "shelf"
    neighbor.HELD.prompts = []
    children = [NEIGHBOR, ours(root, role)] if child else []
    one = Rig(root, tmp_path / "model", role="kv_both" if child else role, children=children)
    full = Rig(root, tmp_path / "model")
    theirs, own = prompt_of(2 * CHUNK + 3, 1), prompt_of(2 * CHUNK + 3, 2)
    with rigs(one, full):
        full.ask(theirs)
        full.settle()
        loaded = one.add(theirs)
        one.run()
        assert one.cached_tokens(loaded) == (0 if role == "kv_producer" else 2 * CHUNK)
        one.ask(own)
        one.settle()
        assert len(one.chunk_files()) == (2 if role == "kv_consumer" else 4)
        assert one.faults(full) == []


@pytest.mark.parametrize("role", [None, "kv_everything"])
def test_any_other_role_is_refused(role: str | None) -> None:
    with pytest.raises(ConfigError, match="kv_role"):
        check_role(SimpleNamespace(kv_role=role))


def test_what_another_connector_loads_is_not_stored(tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    one = Rig(root, tmp_path / "model", children=[NEIGHBOR, ours(root)])
    neighbor.HELD.prompts = [PROMPT[:CHUNK]]
    neighbor.HELD.write = one.runner.write
    with rigs(one):
        name = one.add(PROMPT)
        one.run()
        one.settle()
        assert one.cached_tokens(name) == CHUNK
        assert one.chunk_files() == []
        # Nor what is computed after it: these reuse one of the loaded blocks, or none.
        reuses = one.add([*PROMPT[:BLOCK], *prompt_of(2 * CHUNK, 3)])
        one.run()
        assert one.cached_tokens(reuses) == BLOCK
        one.settle()
        assert one.chunk_files() == []
        one.ask(prompt_of(2 * CHUNK, 4))
        one.settle()
        assert len(one.chunk_files()) == 2
        assert one.faults() == []


def test_hits_are_counted_as_from_disk(tmp_path: Path) -> None:
    one = Rig(tmp_path / "shelf", tmp_path / "model")
    with rigs(one):
        if not hasattr(OffloadingManager, "get_load_source"):
            pytest.skip("this vLLM does not ask where hits come from")
        assert one.manager().get_load_source(KEYS[0], ReqContext(req_id="r")).value == "disk"


def test_host_memory_is_this_engines_own() -> None:
    assert guards.is_host_memory({})
    assert guards.is_host_memory({"spec_name": "CPUOffloadingSpec"})
    tiers = {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [{"type": "fs"}]}
    assert not guards.is_host_memory(tiers)


def test_media_from_another_engines_encoder_are_left_alone() -> None:
    request = Request("r", [1] * 30, SamplingParams(), None, mm_features=picture("ab" * 32))
    assert requests.reason_to_leave_alone(Hashing(), request) is None
    remote = Hashing(has_remote_encoder=True)
    assert requests.reason_to_leave_alone(remote, request) == requests.REMOTE_ENCODER
    request.ec_transfer_params = {"from": "another"}
    assert requests.reason_to_leave_alone(Hashing(), request) == requests.REMOTE_ENCODER
