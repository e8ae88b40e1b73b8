"""Two replicas of ``vllm serve`` on one directory, asked over HTTP as a user would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.damage import chunk_files

from tests.e2e.servers import Completion, Server
from tests.harness.engines import CHUNK_TOKENS, LOGPROB_TOLERANCE, Answer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CHUNKS = 6  # of each prompt; see conftest.py


@pytest.fixture(scope="module")
def replicas(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server]]:
    folder = tmp_path_factory.mktemp("serve")
    shelf = folder / "shelf"
    shelf.mkdir()
    one, two = (Server(name, tiny_model, shelf, folder / f"{name}.log") for name in ("one", "two"))
    with one.launch(), two.launch():  # side by side: most of a start is not computing
        yield one.ready(), two.ready()


@pytest.fixture(scope="module")
def first_answer(replicas: tuple[Server, Server], prompts: list[list[int]]) -> Completion:
    """What the first replica computed, and by now has stored."""
    one, _ = replicas
    answer = one.complete(prompts[0])
    deadline = time.monotonic() + 30
    while len(chunk_files(one.shelf)) < CHUNKS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(chunk_files(one.shelf)) == CHUNKS
    return answer


def test_the_first_replica_computes_the_right_answer(
    first_answer: Completion, truth: list[Answer]
) -> None:
    assert first_answer.cached_tokens == 0
    assert first_answer.tokens == tuple(f"token_id:{token}" for token in truth[0].tokens)
    true = [row[0] for row in truth[0].logprobs]
    assert first_answer.logprobs == pytest.approx(true, abs=LOGPROB_TOLERANCE)


def test_the_second_replica_answers_from_what_the_first_stored(
    replicas: tuple[Server, Server], first_answer: Completion, prompts: list[list[int]]
) -> None:
    _, two = replicas
    answer = two.complete(prompts[0])
    assert answer.cached_tokens == CHUNKS * CHUNK_TOKENS
    assert answer.text == first_answer.text
    assert answer.tokens == first_answer.tokens
    assert answer.logprobs == pytest.approx(first_answer.logprobs, abs=LOGPROB_TOLERANCE)


def test_metrics_say_who_stored_and_who_loaded(
    replicas: tuple[Server, Server], first_answer: Completion, prompts: list[list[int]]
) -> None:
    one, two = replicas
    two.complete(prompts[0])
    assert one.metric("kvshelf:store_outcomes_total") == CHUNKS
    assert one.metric("kvshelf:load_chunks_total") == 0
    assert two.metric("kvshelf:load_chunks_total") == CHUNKS
    assert two.metric("kvshelf:load_bytes_total") == one.metric("kvshelf:store_bytes_total") > 0
    assert two.metric("kvshelf:load_failures_total") == 0
