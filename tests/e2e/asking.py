"""What the tests of sharing engines have in common: questions, right answers, files on a shelf."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from demo.damage import chunk_files

from tests.harness.engines import CHUNK_TOKENS, LOGPROB_TOLERANCE, Answer, EngineProcess

WHOLE_CHUNKS = 6 * CHUNK_TOKENS  # of each prompt; see conftest.py
# Settings under which faults show in seconds.
SHORT_LIMITS = {
    "load_timeout_seconds": 1.0,
    "lookup_timeout_seconds": 0.5,
    "store_timeout_seconds": 2.0,
    "max_write_queued_seconds": 1.0,
    "hit_ttl_seconds": 0.5,
    "miss_ttl_seconds": 0.1,
    "failed_ttl_seconds": 1.0,
}


def ask(engine: EngineProcess, prompts: Sequence[list[int]]) -> list[Answer]:
    """One prompt after the other."""
    return [engine.generate([prompt])[0] for prompt in prompts]


def check(answers: Sequence[Answer], truth: Sequence[Answer]) -> list[int]:
    """The cached tokens of each answer, once all are the right ones."""
    differences = [answer.difference(true) for answer, true in zip(answers, truth, strict=True)]
    assert max(differences) <= LOGPROB_TOLERANCE, differences
    return [answer.cached_tokens for answer in answers]


def await_files(shelf: Path, count: int) -> set[Path]:
    """All chunk files, once there are ``count``: stores are written behind."""
    deadline = time.monotonic() + 30
    while len(files := chunk_files(shelf)) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(files) == count
    return files


def await_anew(path: Path, spoiled: bytes) -> None:
    """Until a chunk file that was spoiled has been stored anew."""
    deadline = time.monotonic() + 30
    while path.read_bytes() == spoiled and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.read_bytes() != spoiled
