"""A real vLLM engine loads from storage that is fast, and computes where it is slow."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.harness.engines import LOGPROB_TOLERANCE, Answer, EngineProcess, engine_arguments

from .mount import FaultyMount, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

CHUNKS = 24
PROMPT = [random.Random(5).randrange(3, 250) for _ in range(CHUNKS * 128 + 5)]
LOADED, REFUSED = "kvshelf:load_chunks_total", "kvshelf:refused_hit_tokens_total"


def test_hits_are_loaded_only_where_that_is_faster(tmp_path: Path, tiny_model: Path) -> None:
    mount = FaultyMount(tmp_path)
    shelf = mount.path / "shelf"
    shelf.mkdir()
    arguments = engine_arguments(tiny_model, shelf, admission="auto", load_timeout_seconds=5.0)
    engine = EngineProcess("admission", arguments, tmp_path / "engine.log")

    def ask() -> Answer:
        engine.reset_prefix_cache()
        (answer,) = engine.generate([PROMPT])
        return answer

    try:
        with engine:
            right = ask()
            deadline = time.monotonic() + 60  # stored, measured, and then loaded
            while not engine.metrics().get(LOADED, 0):
                assert ask().difference(right) <= LOGPROB_TOLERANCE
                assert time.monotonic() < deadline, engine.log_tail()
                time.sleep(0.2)
            # 12 MiB of chunks take minutes: one load finds out, or none.
            mount.set(bandwidth_mb_s=0.1)
            refused = engine.metrics().get(REFUSED, 0)
            deadline = time.monotonic() + 120
            while engine.metrics().get(REFUSED, 0) <= refused:
                assert ask().difference(right) <= LOGPROB_TOLERANCE
                assert time.monotonic() < deadline, engine.log_tail()
            mount.set()
    finally:
        mount.close()
