"""A real engine over two roots: the same answers, hits after a restart, and one root that fails."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from damage import chunk_files
from engines import CHUNK_TOKENS, LOGPROB_TOLERANCE, Answer, EngineProcess, engine_arguments
from faulty_mount import FaultyMount, why_not

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WHOLE = 6 * CHUNK_TOKENS  # of each prompt; see conftest.py
LIMITS = {
    "load_timeout_seconds": 1.0,
    "lookup_timeout_seconds": 0.5,
    "store_timeout_seconds": 2.0,
    "max_write_queued_seconds": 1.0,
    "hit_ttl_seconds": 0.5,
    "miss_ttl_seconds": 0.1,
    "failed_ttl_seconds": 1.0,
}


def check(answers: Sequence[Answer], truth: Sequence[Answer]) -> list[int]:
    """Tokens that came from the shelf, once the answers are right."""
    for answer, true in zip(answers, truth, strict=True):
        assert answer.difference(true) <= LOGPROB_TOLERANCE
    return [answer.cached_tokens for answer in answers]


def test_two_roots_serve_one_engine(
    tiny_model: Path,
    tmp_path: Path,
    prompts: list[list[int]],
    truth: list[Answer],
) -> None:
    """The second root is a mount that can hang, where there is one; else its files go, no more."""
    can_hang = why_not() is None
    mount = FaultyMount(tmp_path / "m") if can_hang else None
    roots = [tmp_path / "one", (mount.path if mount else tmp_path) / "two"]
    arguments = engine_arguments(tiny_model, roots[0], **LIMITS)
    extra = arguments["kv_transfer_config"]["kv_connector_extra_config"]  # type: ignore[index]
    extra["shared_storage_path"] = [str(root) for root in roots]
    try:
        with EngineProcess("first", arguments, tmp_path / "first.log") as engine:
            assert check([engine.generate([p])[0] for p in prompts], truth) == [0] * len(prompts)
            deadline = time.monotonic() + 30
            while sum(len(chunk_files(root)) for root in roots) < 6 * len(prompts):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert all(len(chunk_files(root)) > 2 for root in roots)
        extra["shared_storage_path"].reverse()  # the order does not matter
        with EngineProcess("second", arguments, tmp_path / "second.log") as engine:
            _after_a_restart(engine, roots, mount, prompts, truth)
    finally:
        if mount is not None:
            mount.thaw()
            mount.close()


def _after_a_restart(
    engine: EngineProcess,
    roots: list[Path],
    mount: FaultyMount | None,
    prompts: list[list[int]],
    truth: list[Answer],
) -> None:
    def ask() -> list[int]:
        engine.reset_prefix_cache()
        time.sleep(0.6)  # past what the scheduler still believes
        return check([engine.generate([p])[0] for p in prompts], truth)

    def until_all_hit() -> None:
        deadline = time.monotonic() + 60
        while min(ask()) < WHOLE:
            assert time.monotonic() < deadline, engine.log_tail()

    assert ask() == [WHOLE] * len(prompts)
    for path in chunk_files(roots[1]):
        path.unlink()
    found = ask()
    assert min(found) < WHOLE  # computed, and stored anew
    until_all_hit()
    if mount is None:
        shutil.rmtree(roots[1])
        ask()
        return
    mount.freeze()
    series = f"kvshelf:breaker_state{{root={roots[1]},side=reading}}"
    deadline = time.monotonic() + 90
    rng = random.Random(7)
    while engine.metrics().get(series) != 2:
        assert time.monotonic() < deadline, engine.log_tail()
        engine.generate([[rng.randrange(3, 250) for _ in range(2 * CHUNK_TOKENS + 1)]])
        ask()
    good = f"kvshelf:breaker_state{{root={roots[0]},side=reading}}"
    assert engine.metrics()[good] == 0
    assert max(ask()) < WHOLE and engine.alive()
    mount.thaw()
    until_all_hit()
