"""KvshelfTier behind vLLM's host memory on vLLM's real scheduler: it too leaves requests alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.request import RequestStatus  # noqa: E402

from tests.harness.host_memory import tier_config  # noqa: E402

from .rig import CHUNK, Rig, answer_to, prompt_of, rigs  # noqa: E402

PROMPT = prompt_of(2 * CHUNK + 3)


def tiered(tmp_path: Path, role: str = "kv_both", **options: Any) -> Rig:
    transfer = tier_config(tmp_path / "shelf", chunk_tokens=CHUNK, canonical=False)
    transfer["kv_role"] = role
    transfer["kv_connector_extra_config"]["cpu_bytes_to_use"] = 64_000_000
    return Rig(tmp_path / "shelf", tmp_path / "model", kv_transfer_config=transfer, **options)


def stored(engine: Rig) -> int:
    engine.settle()
    (tier,) = engine.scheduler.connector.connector_scheduler.manager.secondary_tiers
    tier.drain_jobs()
    engine.step()
    return len(engine.chunk_files())


@pytest.mark.parametrize("remote", [False, True])
def test_a_request_that_is_left_alone_does_not_reach_the_tier(tmp_path: Path, remote: bool) -> None:
    engine = tiered(tmp_path)
    params = {"kv_transfer_params": {"do_remote_prefill": remote}}
    with rigs(engine):
        assert engine.ask(PROMPT, sampling={"extra_args": params}) == answer_to(PROMPT, 4)
        assert stored(engine) == (0 if remote else 2)


@pytest.mark.parametrize("role", ["kv_both", "kv_consumer", "kv_producer"])
def test_a_tier_has_its_engines_role(tmp_path: Path, role: str) -> None:
    one, two = tiered(tmp_path), tiered(tmp_path, role)
    with rigs(one, two):
        one.ask(PROMPT)
        assert stored(one) == 2
        name = two.add(PROMPT)
        two.run()
        assert two.cached_tokens(name) == (0 if role == "kv_producer" else 2 * CHUNK)
        two.ask(prompt_of(2 * CHUNK, 5))
        assert stored(two) == (2 if role == "kv_consumer" else 4)


def test_what_was_never_computed_does_not_reach_the_tier(tmp_path: Path) -> None:
    engine = tiered(tmp_path, max_num_batched_tokens=CHUNK + 48)
    with rigs(engine):
        name = engine.add(prompt_of(3 * CHUNK))
        while not engine.requests[name].num_computed_tokens:
            engine.step()
        engine.scheduler.finish_requests(name, RequestStatus.FINISHED_ERROR)
        assert stored(engine) <= 1
