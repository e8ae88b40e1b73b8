"""A real vLLM engine with a tiny model, whose system calls meet random faults that change every few
requests: its answers are those of an engine without kvshelf, and it neither ends nor hangs."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvshelf.faultlog import INTERVAL_SECONDS
from tests.harness.engines import LOGPROB_TOLERANCE, Answer, EngineProcess, engine_arguments
from tests.harness.faulty_calls import FaultyCalls, Rule
from tests.harness.tiny_model import make_tiny_model

from .schedule import name_of, random_rules

# 7 chunks of 128 tokens each, of which vLLM may reuse all but the last token.
PROMPTS = [[random.Random(n).randrange(3, 250) for _ in range(7 * 128 + 5)] for n in range(12)]
LIMITS = {
    "load_timeout_seconds": 1.0,
    "load_stall_seconds": 0.5,
    "lookup_timeout_seconds": 0.5,
    "store_timeout_seconds": 1.0,
    "max_write_queued_seconds": 1.0,
    "breaker_retry_seconds": 0.5,
    "hit_ttl_seconds": 0.5,
    "miss_ttl_seconds": 0.1,
    "failed_ttl_seconds": 1.0,
    "touch_interval_seconds": 0.0,
}
_LINE = re.compile(r"kvshelf: ((?:load|store) failed \([a-z_]+\)): ")


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """For processes that are started in it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def verdict(mine: Answer, right: Answer) -> str:
    """A tie: at the first other token the two were equally likely, within the tolerance. Batches of
    another shape may then choose the other; what follows cannot be compared."""
    rows = zip(mine.tokens, mine.logprobs, right.tokens, right.logprobs, strict=True)
    for my_token, my_row, token, row in rows:
        if not abs(my_row[0] - row[0]) <= LOGPROB_TOLERANCE:  # NaN is wrong too
            return "wrong"
        if my_token != token:
            return "tie"
    return "right"


def fault_lines(log: str) -> Counter[str]:
    """How often each cause of the worker's was logged."""
    return Counter(_LINE.findall(log))


def too_many_lines(log: str, seconds: float) -> list[str]:
    """Causes with more lines than one, and one a minute after it."""
    allowed = 1 + int(seconds / INTERVAL_SECONDS)
    counts = fault_lines(log)
    return [f"{cause}: {count} lines" for cause, count in counts.items() if count > allowed]


class EngineRun:
    """Engines, and what came of their requests. One thread.

    Args:
        folder: empty; for the shelf, the logs and the rules.
        seed: of the faults and of the order of requests.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(f"engine {seed}")
        self.seed = seed
        self.shelf = shelf = folder / "shelf"
        shelf.mkdir()
        self.calls = FaultyCalls(folder / "control", shelf)
        model = make_tiny_model(folder / "model")
        self.engine = EngineProcess(
            "faulty", engine_arguments(model, shelf, **LIMITS), folder / "faulty.log"
        )
        plain = EngineProcess("plain", engine_arguments(model, None), folder / "plain.log")
        try:
            self.truth = plain.launch().ready().generate(PROMPTS)
        finally:
            plain.stop()
        self.verdicts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.rounds = self.from_shelf = self.cached_tokens = self.evicted = 0
        self.log_lines: Counter[str] = Counter()
        self.wrong: list[str] = []

    def go(self, seconds: float) -> dict[str, object]:
        """Rounds of faults and requests for so long, then one without faults; figures."""
        with environment(self.calls.environment()):
            self.engine.launch()
        try:
            self.engine.ready()
            start = time.monotonic()
            self._round([])  # something to load
            while time.monotonic() < start + seconds:
                self._round(random_rules(self.random, hangs=True, path=_UNDER_THE_SHELF))
            self.calls.set()
            self._until_it_loads()
            took = time.monotonic() - start
            counters = self.engine.metrics()
        finally:
            self.calls.set()
            orderly = self.engine.stop()
        if not orderly:
            self.wrong.append("the engine did not end in good order")
        log = self.engine.log.read_text(errors="replace")
        self.log_lines = fault_lines(log)
        self.wrong += too_many_lines(log, time.monotonic() - start)
        return self._figures(took, counters)

    def _round(self, rules: list[Rule]) -> None:
        self.calls.set(*rules)
        if self.random.random() < 0.8:
            self.engine.reset_prefix_cache()
        for path in sorted(self.shelf.glob("*/r*/*/*.kv")):  # as an evictor: then there are stores
            if self.random.random() < 0.3:
                path.unlink(missing_ok=True)
                self.evicted += 1
        chosen = self.random.sample(range(len(PROMPTS)), self.random.randint(1, 6))
        self._ask(chosen, f"round {self.rounds} with {rules}")
        for rule, times in zip(rules, self.calls.injected(), strict=True):
            if times:
                self.faults[f"{rule.operation}: {name_of(rule)}"] += times
        self.rounds += 1

    def _ask(self, chosen: list[int], what: str) -> int:
        """How many of the answers came from the cache."""
        answers = self.engine.generate([PROMPTS[index] for index in chosen])
        for index, answer in zip(chosen, answers, strict=True):
            found = verdict(answer, self.truth[index])
            self.verdicts[found] += 1
            if found == "wrong":
                self.wrong.append(f"seed {self.seed}, {what}: prompt {index}")
        cached = [answer.cached_tokens for answer in answers]
        self.cached_tokens += sum(cached)
        self.from_shelf += sum(tokens > 0 for tokens in cached)
        return sum(tokens > 0 for tokens in cached)

    def _until_it_loads(self) -> None:
        """Without faults it stores and loads again."""
        deadline = time.monotonic() + 60
        chosen = list(range(4))
        while time.monotonic() < deadline:
            self.engine.reset_prefix_cache()
            if self._ask(chosen, "after all faults") == len(chosen):
                return
            time.sleep(0.2)
        self.wrong.append("it does not load again")

    def _figures(self, seconds: float, counters: dict[str, float]) -> dict[str, object]:
        names = ("load_chunks_total", "load_failures", "store_outcomes", "lookups", "healed")
        return {
            "seed": self.seed,
            "seconds": round(seconds, 1),
            "fault_schedules": self.rounds,
            "requests": self.verdicts.total(),
            "requests_with_cached_tokens": self.from_shelf,
            "cached_tokens": self.cached_tokens,
            "answers": dict(self.verdicts),
            "chunks_evicted": self.evicted,
            "faults": self.faults.total(),
            "log_lines_of_faults": dict(self.log_lines),
            "faults_by_kind": dict(sorted(self.faults.items())),
            "counters": {
                name: value
                for name, value in sorted(counters.items())
                if any(part in name for part in names) and "created" not in name
            },
            "wrong": self.wrong,
        }


_UNDER_THE_SHELF = "*/shelf/*"
