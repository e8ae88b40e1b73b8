"""A real vLLM engine whose storage hangs, lies or fills up: right answers, in bounded time."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.asking import SHORT_LIMITS
from tests.harness.engines import LOGPROB_TOLERANCE, Answer, EngineProcess, engine_arguments

from .mount import FaultyMount, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

# 7 chunks of 128 tokens each, of which vLLM may reuse all but the last token.
PROMPTS = [[random.Random(n).randrange(3, 250) for _ in range(7 * 128 + 5)] for n in range(4)]


class Site:
    """An engine on a faulty mount, and what an engine without kvshelf answered."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.mount = FaultyMount(folder)
        shelf = self.mount.path / "shelf"
        shelf.mkdir()
        plain = EngineProcess("plain", engine_arguments(model, None), folder / "plain.log")
        with_shelf = engine_arguments(model, shelf, **SHORT_LIMITS)
        self.engine = EngineProcess("faulty", with_shelf, folder / "faulty.log")
        self.engine.launch()
        try:
            self.truth = plain.launch().ready().generate(PROMPTS)
        finally:
            plain.stop()
        self.engine.ready()

    def ask(self) -> tuple[list[Answer], float]:
        """All prompts with an empty prefix cache; answers, and seconds."""
        self.engine.reset_prefix_cache()
        start = time.monotonic()
        answers = self.engine.generate(PROMPTS)
        return answers, time.monotonic() - start

    def check(self, answers: list[Answer]) -> None:
        for answer, right in zip(answers, self.truth, strict=True):
            assert answer.difference(right) <= LOGPROB_TOLERANCE

    def await_hits(self) -> None:
        """Ask until every chunk is answered from the shelf, as before any fault."""
        deadline = time.monotonic() + 30
        while True:
            answers, _ = self.ask()
            self.check(answers)
            if all(answer.cached_tokens >= 7 * 128 for answer in answers):
                return
            assert time.monotonic() < deadline, [answer.cached_tokens for answer in answers]
            time.sleep(0.3)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("vllm-faults"), tiny_model)
    yield made
    made.mount.set()
    made.engine.stop()
    made.mount.close()


@pytest.mark.parametrize(
    "faults",
    [
        {"match": "*.kv", "flip_read_bit": True, "probability": 0.3},
        {"match": "*.kv", "read": "EIO", "probability": 0.5},
        {"match": "*.kv", "open": "ESTALE", "probability": 0.5},
        {"match": "*.kv", "stall_read_s": 60},
        {"stall_lookup_s": 60},
        {"write": "ENOSPC", "create": "ENOSPC"},
        {"stat": "EIO"},
        {"metadata_latency_ms": 20, "read_latency_ms": 20},
    ],
    ids=lambda faults: ",".join(f"{k}={v}" for k, v in faults.items() if k != "match"),
)
def test_a_fault_costs_time_at_most(site: Site, faults: dict[str, Any]) -> None:
    site.await_hits()
    site.mount.set(**faults)
    time.sleep(0.6)  # past what the scheduler still believes
    for _ in range(3):
        answers, seconds = site.ask()
        site.check(answers)
        # Each deadline may pass once, then all is computed; on two busy cores that takes seconds.
        assert seconds < 20
    assert site.engine.alive()
    site.mount.set()
    site.await_hits()


def test_storage_that_hangs_is_left_alone_until_it_answers(site: Site) -> None:
    site.await_hits()
    root = site.mount.path / "shelf"
    labels = f"{{root={root},side=reading}}"
    lookups, openings = "kvshelf:lookups_total", f"kvshelf:breaker_openings_total{labels}"
    before = site.engine.metrics().get(openings, 0.0)
    site.mount.set(stall_lookup_s=60, stall_read_s=60)
    deadline = time.monotonic() + 60
    while site.engine.metrics().get(openings, 0.0) <= before:
        assert time.monotonic() < deadline, site.engine.log_tail()
        time.sleep(0.6)  # past what the scheduler still believes
        site.check(site.ask()[0])
    asked = [v for name, v in site.engine.metrics().items() if name.startswith(lookups)]
    site.check(site.ask()[0])
    again = [v for name, v in site.engine.metrics().items() if name.startswith(lookups)]
    assert asked == again  # nobody asked for a chunk
    site.mount.set()
    site.await_hits()
    assert site.engine.metrics()[f"kvshelf:breaker_state{labels}"] == 0
    log = site.engine.log.read_text()
    assert "reading is suspended" in log and "reading goes on" in log
