"""Situations in which vLLM's offloading connector stores slots that were never computed, reads
blocks that are another's by now, or ends the engine. On vLLM's real scheduler (``rig``)."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from prometheus_client import REGISTRY  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorProm  # noqa: E402
from vllm.v1.metrics.prometheus import unregister_vllm_metrics  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

from . import neighbor  # noqa: E402
from .neighbor import NEIGHBOR  # noqa: E402
from .rig import CHUNK, Rig, answer_to, ours, prompt_of, rigs  # noqa: E402

ALL = {"offload_prompt_only": False}  # answers are stored too


def rig(tmp_path: Path, **options: Any) -> Rig:
    return Rig(tmp_path / "shelf", tmp_path / "model", **options)


def draft(tokens: list[int]) -> list[int]:
    """One right token and two wrong ones."""
    right = answer_to(tokens, 3)
    return [right[0], 1 + right[1] % 400, right[2]]


@pytest.mark.parametrize(
    "options", [{}, {"draft": draft}, {"async_scheduling": True}], ids=["plain", "draft", "async"]
)
def test_an_answer_that_ends_with_a_chunk_is_stored_as_far_as_computed(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    engine = rig(tmp_path, extra=ALL, **options)
    with rigs(engine):
        for i, length in enumerate((CHUNK - 4, 2 * CHUNK - 4, 2 * CHUNK - 5, 2 * CHUNK - 3)):
            prompt = prompt_of(length, i)
            assert engine.ask(prompt, max_tokens=4) == answer_to(prompt, 4)
            engine.settle()
        stop = answer_to(prompt_of(CHUNK - 2, 9), 2)[1]
        engine.ask(prompt_of(CHUNK - 2, 9), max_tokens=9, sampling={"stop_token_ids": [stop]})
        engine.settle()
        assert engine.faults() == []
        # One of the second, third and fourth prompt each, and one that ends in the fourth answer.
        assert len(engine.chunk_files()) == 4


@pytest.mark.parametrize("extra", [{}, ALL], ids=["prompts", "answers too"])
@pytest.mark.parametrize("how", ["plain", "async"])
def test_a_client_that_hangs_up_costs_nothing(
    tmp_path: Path, extra: dict[str, Any], how: str
) -> None:
    engine = rig(
        tmp_path,
        extra=extra,
        blocks=40,
        max_num_batched_tokens=48,
        max_num_seqs=3,
        async_scheduling=how == "async",
    )
    with rigs(engine):
        kept = prompt_of(3 * CHUNK, 1)
        engine.ask(kept)
        engine.settle()
        for steps in range(12):
            engine.scheduler.reset_prefix_cache()
            for _ in range(steps):
                engine.step()
            # Some are computed or loaded by halves, some decode, some are queued.
            names = [engine.add(prompt_of(3 * CHUNK - 2, 100 * steps + i)) for i in range(3)]
            names.append(engine.add([*kept, *prompt_of(CHUNK, steps)]))
            names.append(engine.add(prompt_of(2 * CHUNK, 100 * steps + 9)))
            for _ in range(steps):
                engine.step()
            engine.abort(*names)
            prompt = prompt_of(2 * CHUNK + 5, 1000 + steps)
            assert engine.ask(prompt, max_tokens=70) == answer_to(prompt, 70)
        engine.settle()
        assert engine.faults() == []


@pytest.mark.parametrize("status", ["FINISHED_ABORTED", "FINISHED_ERROR"])
@pytest.mark.parametrize("preempted", [False, True])
def test_a_request_that_ends_half_computed_stores_that_half(
    tmp_path: Path, status: str, preempted: bool
) -> None:
    engine = rig(tmp_path, max_num_batched_tokens=CHUNK + 48)
    with rigs(engine):
        name = engine.add(prompt_of(3 * CHUNK))
        while not engine.requests[name].num_computed_tokens:  # lookups come first
            engine.step()
        # 112 tokens: a chunk, and blocks of a second one that is not whole.
        if preempted:
            assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        engine.scheduler.finish_requests(name, RequestStatus[status])
        engine.settle()
        assert engine.faults() == []
        # A store whose bytes are not taken when its request is preempted is dropped.
        assert len(engine.chunk_files()) in ({0, 1} if preempted else {1})


@pytest.mark.parametrize("reset_connector", [False, True])
@pytest.mark.parametrize("when", ["running", "loading", "storing"])
def test_running_requests_are_reset(tmp_path: Path, when: str, reset_connector: bool) -> None:
    engine = rig(tmp_path, hold_stores=when == "storing")
    prompt = prompt_of(3 * CHUNK + 10)
    with rigs(engine):
        if when != "storing":
            engine.ask(prompt)
            engine.settle()
            engine.scheduler.reset_prefix_cache()
        name = engine.add(prompt, max_tokens=30)
        for _ in range(200):
            waits = "WAITING_FOR_REMOTE" in str(engine.requests[name].status)
            if waits if when == "loading" else len(engine.answers[name]) > 2:
                break
            engine.step()
        for _ in range(3):
            # vLLM refuses in these words while a request is loading; the engine lives on.
            with contextlib.suppress(RuntimeError):
                engine.scheduler.reset_prefix_cache(
                    reset_running_requests=True, reset_connector=reset_connector
                )
            engine.step()
            engine.step()
        engine.run()
        engine.let_go()
        engine.settle()
        assert engine.faults() == []
        assert engine.answers[name] == answer_to(prompt, 30)


@pytest.mark.parametrize("first", ["neighbor", "ours"])
@pytest.mark.parametrize("held", [True, False])
def test_a_queued_store_never_reads_what_another_connector_loads(
    tmp_path: Path, first: str, held: bool
) -> None:
    children = [NEIGHBOR, ours(tmp_path / "shelf")]
    engine = rig(
        tmp_path,
        blocks=14,
        hold_stores=held,
        children=children if first == "neighbor" else children[::-1],
        max_num_seqs=1,
    )
    foreign = [prompt_of(5 * CHUNK + 1, 50 + i) for i in range(4)]
    neighbor.HELD.prompts = [prompt[: 5 * CHUNK] for prompt in foreign]
    neighbor.HELD.write = engine.runner.write
    with rigs(engine):
        for i in range(4):
            engine.add(prompt_of(5 * CHUNK, i), max_tokens=2)
            engine.add(foreign[i], max_tokens=2)
        engine.run()
        engine.let_go()
        engine.settle()
        assert engine.faults() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", [{}, {"draft": draft}, {"async_scheduling": True}], ids=["plain", "draft", "async"]
)
def test_too_many_requests_for_the_memory(
    tmp_path: Path, options: dict[str, Any], seed: int
) -> None:
    """Preemptions, aborts and ends in every order that these numbers give."""
    chosen = random.Random(seed)
    engine = rig(tmp_path, extra=ALL, blocks=20, hold_stores=True, max_num_seqs=8, **options)
    with rigs(engine):
        wanted = {}
        for i in range(40):
            prompt = prompt_of(chosen.randrange(20, 3 * CHUNK), chosen.randrange(12))
            count = chosen.randrange(1, 2 * CHUNK)
            wanted[engine.add(prompt, max_tokens=count)] = answer_to(prompt, count)
            for _ in range(chosen.randrange(12)):
                engine.step()
            if i % 5 == 4:
                name = chosen.choice(list(wanted))
                if not engine.requests[name].is_finished():
                    engine.abort(name)
                    del wanted[name]
            if i % 7 == 6:
                engine.let_go()
        engine.run()
        engine.let_go()
        engine.settle()
        assert engine.faults() == []
        assert {name: engine.answers[name] for name in wanted} == wanted


@pytest.mark.parametrize("child", [False, True])
def test_a_second_engine_in_the_process_counts_too(tmp_path: Path, child: bool) -> None:
    children = [NEIGHBOR, ours(tmp_path / "shelf")] if child else []
    engine = rig(tmp_path, children=children)
    with rigs(engine):
        for _ in range(2):
            unregister_vllm_metrics()  # as vLLM does for each engine
            KVConnectorProm(engine.config, ["model_name"], {0: ["m"]})
        names = {name for names in REGISTRY._collector_to_names.values() for name in names}
        assert {"kvshelf:lookups_total", "kvshelf:requests_left_alone_total"} <= names


def test_no_load_is_waited_for_within_a_step(tmp_path: Path) -> None:
    """vLLM 0.33 computes on blocks whose load fails within the step, and stores the result."""
    settings = {"sync_load_budget_bytes": 1 << 40}
    one, two = rig(tmp_path, extra=settings), rig(tmp_path, extra=settings)
    prompt = prompt_of(3 * CHUNK + 5)
    with rigs(one, two):
        one.ask(prompt)
        one.settle()
        assert two.ask(prompt) == answer_to(prompt, 4)
        two.settle()
        two.scheduler.reset_prefix_cache()
        one.chunk_files()[1].unlink()  # two takes it for a hit
        assert two.ask(prompt) == answer_to(prompt, 4)
        two.settle()
        assert two.faults(one) == []
        extra = two.config.kv_transfer_config.kv_connector_extra_config
        assert extra["sync_load_budget_bytes"] == 0
