"""Random sequences of weight changes in two replicas on one shelf, every answer compared.

    python benchmarks/bench_weights.py [--sequences 100] [--seed 0] [--directory DIR] [--out FILE]

Three sets of weights of one model. A sequence is a few operations on one of two real engines
(vLLM for the CPU): reload from files, reload one tensor, write some rows in place, an RPC that does
nothing, resets of each kind, pause and resume around an update, sleep and wake up, a restart. After
each change that vLLM's own rules make complete (the prefix cache was reset after it, or was empty
when it began) both replicas are asked, and each answer is compared with that of an engine without
kvshelf that has the same weights. Counted: wrong answers, engines that ended, and hits where the
other replica or this one had stored the same prompt under the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.harness.engines import (
    CHUNK_TOKENS,
    LOGPROB_TOLERANCE,
    Answer,
    EngineFailedError,
    EngineProcess,
    engine_arguments,
    make_prompt,
)
from tests.harness.tiny_model import make_tiny_model

TRAINER = "tests.e2e.trainer"
PROMPTS = [make_prompt(seed, 4 * CHUNK_TOKENS + 1) for seed in (500, 501)]
FIGURES = ("answers", "wrong", "ended", "could hit", "hit")
WHOLE = 4 * CHUNK_TOKENS
TENSOR = "model.layers.1.self_attn.o_proj.weight"  # not fused with others, so read whole
# Weights by name: a set of files, and whether one tensor comes from another, and rows doubled.
State = tuple[int, int | None, bool]


class Replica:
    """An engine and the weights that it should have."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.engine: EngineProcess | None = None
        self.state: State = (0, None, False)
        self.restart()

    def restart(self) -> None:
        if self.engine is not None:
            self.engine.stop()
        arguments = engine_arguments(self.site.models[0], self.site.folder / "shelf")
        log = self.site.folder / f"{self.name}.log"
        self.engine = EngineProcess(self.name, arguments, log).launch().ready()
        self.state = (0, None, False)

    def rpc(self, function: str, /, **arguments: object) -> None:
        assert self.engine is not None
        self.engine.rpc(f"{TRAINER}:{function}", **arguments)

    def change(self, rng: random.Random) -> str:
        """One change of weights, not followed by a reset."""
        files, tensor, doubled = self.state
        kind = rng.choice(["reload", "reload", "tensor", "rows", "nothing"])
        if kind == "reload":
            files = rng.randrange(3)
            self.rpc("reload", path=str(self.site.models[files]))
            self.state = (files, None, False)
        elif kind == "tensor":
            tensor = rng.randrange(3)
            self.rpc("reload_one", path=str(self.site.models[tensor]), name=TENSOR)
            self.state = (files, None if tensor == files else tensor, doubled)
        elif kind == "rows":
            self.rpc("set_rows", rows=5, factor=0.5 if doubled else 2.0)
            self.state = (files, tensor, not doubled)
        else:
            self.rpc("nothing")
        return kind

    def operate(self, rng: random.Random) -> str:
        """A change, complete by vLLM's rules."""
        assert self.engine is not None
        how = rng.choice(["after", "after", "before", "pause", "sleep", "running", "restart"])
        if how == "restart":
            self.restart()
            return how
        if how == "before":  # the cache is empty when the update begins
            self.engine.reset_prefix_cache(connector=rng.random() < 0.5)
            return f"{how}: {self.change(rng)}"
        if how == "sleep":
            self.engine.call("sleep", level=1)
            self.engine.call("wake_up")
        change = "+".join(self.change(rng) for _ in range(rng.choice([1, 1, 2])))
        self.engine.reset_prefix_cache(
            connector=how == "pause" or rng.random() < 0.5, running=how == "running"
        )
        return f"{how}: {change}"


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shelf").mkdir()
        self.models = [make_tiny_model(folder / f"w{n}" / "tiny", 20 + n) for n in range(3)]
        self._plain = Plain(self)
        self._truth: dict[State, list[Answer]] = {}
        self.stored: Counter[State] = Counter()

    def truth(self, state: State) -> list[Answer]:
        if state not in self._truth:
            self._truth[state] = self._plain.answers(state)
        return self._truth[state]

    def close(self) -> None:
        self._plain.engine.stop()


class Plain:
    """An engine without kvshelf, given whatever weights are asked for."""

    def __init__(self, site: Site) -> None:
        self.site = site
        arguments = engine_arguments(site.models[0], None)
        self.engine = EngineProcess("plain", arguments, site.folder / "plain.log")
        self.engine.launch().ready()

    def answers(self, state: State) -> list[Answer]:
        files, tensor, doubled = state
        self.engine.rpc(f"{TRAINER}:reload", path=str(self.site.models[files]))
        if tensor is not None:
            path = str(self.site.models[tensor])
            self.engine.rpc(f"{TRAINER}:reload_one", path=path, name=TENSOR)
        if doubled:
            self.engine.rpc(f"{TRAINER}:set_rows", rows=5, factor=2.0)
        self.engine.reset_prefix_cache()
        return [self.engine.generate([prompt])[0] for prompt in PROMPTS]


def asked(site: Site, replica: Replica, figures: Counter[str]) -> list[str]:
    """Ask once, compare; complaints."""
    assert replica.engine is not None
    answers = [replica.engine.generate([prompt])[0] for prompt in PROMPTS]
    wrong = []
    for answer, true in zip(answers, site.truth(replica.state), strict=True):
        figures["answers"] += 1
        difference = answer.difference(true)
        if not difference <= LOGPROB_TOLERANCE:
            figures["wrong"] += 1
            wrong.append(f"{replica.name} {replica.state}: {difference}")
        if site.stored[replica.state]:
            figures["could hit"] += 1
            figures["hit"] += answer.cached_tokens >= WHOLE
    site.stored[replica.state] += 1
    return wrong


def run(site: Site, sequences: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    figures: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    complaints: list[str] = []
    replicas = [Replica(site, "one"), Replica(site, "two")]
    start = time.monotonic()
    for number in range(sequences):
        for _ in range(rng.randrange(1, 4)):
            replica = rng.choice(replicas)
            try:
                operations[replica.operate(rng)] += 1
                complaints += asked(site, replica, figures)
                time.sleep(0.3)  # stores are written behind
            except EngineFailedError as error:
                figures["ended"] += 1
                complaints.append(f"{replica.name}: {error}"[:2000])
                replica.restart()
        print(number + 1, dict(figures), flush=True)
    for replica in replicas:
        assert replica.engine is not None
        figures["ended"] += not replica.engine.stop()
    return {
        "sequences": sequences,
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
        "figures": {
            name: figures[name] for name in ("answers", "wrong", "ended", "could hit", "hit")
        },
        "hit share": round(figures["hit"] / max(1, figures["could hit"]), 4),
        "operations": dict(operations.most_common()),
        "complaints": complaints,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        site = Site(Path(folder))
        result = run(site, args.sequences, args.seed)
        site.close()
    result |= {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python benchmarks/bench_weights.py " + " ".join(sys.argv[1:]),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 1 if result["figures"]["wrong"] or result["figures"]["ended"] else 0


if __name__ == "__main__":
    sys.exit(main())
