"""The direct path beside vLLM's own offloading to host memory, under vLLM's MultiConnector.

As the llm-d guide of 2026 deploys it: host memory first, the shelf behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.damage import flip_bit

from tests.e2e.asking import WHOLE_CHUNKS, ask, await_anew, await_files, check
from tests.harness.engines import (
    CHUNK_TOKENS,
    Answer,
    EngineProcess,
    connector_config,
    engine_arguments,
)
from tests.harness.host_memory import host_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CHUNK_BYTES = 524_288  # of the tiny model


def engine(folder: Path, model: Path, name: str) -> EngineProcess:
    ours = connector_config(folder / "shelf")
    del ours["kv_load_failure_policy"]  # what the engine does then is the outer one's to say
    arguments = engine_arguments(model, None)
    arguments["kv_transfer_config"] = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [host_config(CHUNK_TOKENS), ours]},
    }
    return EngineProcess(name, arguments, folder / f"{name}.log")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("multi")
    (made / "shelf").mkdir()
    return made


@pytest.fixture(scope="module")
def first(
    folder: Path, tiny_model: Path, prompts: list[list[int]], truth: list[Answer]
) -> Iterator[EngineProcess]:
    with engine(folder, tiny_model, "first") as process:
        assert check(ask(process, prompts), truth) == [0, 0, 0]
        await_files(folder / "shelf", 18)
        yield process
        assert process.stop(), process.log_tail()


def test_what_host_memory_has_comes_from_there(
    first: EngineProcess, prompts: list[list[int]], truth: list[Answer]
) -> None:
    first.reset_prefix_cache()
    assert check(ask(first, prompts), truth) == [WHOLE_CHUNKS] * 3
    series = {**first.metrics(), **first.metrics("vllm:kv_offload")}
    assert series["vllm:kv_offload_load_bytes_total"] == 18 * CHUNK_BYTES
    assert series.get("kvshelf:load_bytes_total", 0) == 0
    # Each has its own series, and vLLM's count both.
    assert series["kvshelf:store_bytes_total"] == 18 * CHUNK_BYTES
    assert series["vllm:kv_offload_store_bytes_total"] == 36 * CHUNK_BYTES
    assert series["vllm:kv_offload_cpu_allocation_size_sum"] == 18


def test_what_host_memory_lacks_comes_from_the_shelf_and_a_bad_chunk_is_computed(
    folder: Path,
    first: EngineProcess,
    tiny_model: Path,
    prompts: list[list[int]],
    truth: list[Answer],
) -> None:
    bad = sorted(await_files(folder / "shelf", 18))[4]
    flip_bit(bad, ())
    spoiled = bad.read_bytes()
    with engine(folder, tiny_model, "second") as process:
        cached = check(ask(process, prompts), truth)
        assert sorted(cached)[1:] == [WHOLE_CHUNKS] * 2
        series = process.metrics()
        assert series["kvshelf:load_failures_total{cause=corrupt}"] == 1
        assert series["kvshelf:load_bytes_total"] >= 12 * CHUNK_BYTES
        await_anew(bad, spoiled)
        # Now host memory has all of them.
        process.reset_prefix_cache()
        before = process.metrics()["kvshelf:load_bytes_total"]
        assert check(ask(process, prompts), truth) == [WHOLE_CHUNKS] * 3
        assert process.metrics()["kvshelf:load_bytes_total"] == before
        assert process.stop(), process.log_tail()
