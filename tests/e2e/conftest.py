"""What the end-to-end tests share: prompts, and the answers of an engine that has no kvshelf."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.engines import CHUNK_TOKENS, Answer, EngineProcess, engine_arguments, make_prompt

CHUNKS = 6
PROMPT_TOKENS = CHUNKS * CHUNK_TOKENS + 1
PROMPTS = [make_prompt(seed, PROMPT_TOKENS) for seed in range(100, 103)]


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Three prompts of six whole chunks and a token each."""
    return PROMPTS


@pytest.fixture(scope="session")
def truth(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """The answers to ``prompts`` of an engine without kvshelf, on one rank."""
    log = tmp_path_factory.mktemp("plain") / "engine.log"
    with EngineProcess("plain", engine_arguments(tiny_model, None), log) as engine:
        answers = [engine.generate([prompt])[0] for prompt in PROMPTS]
    assert [answer.cached_tokens for answer in answers] == [0] * len(PROMPTS)
    return answers
