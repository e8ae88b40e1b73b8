"""The engine of bench_faults.py: one vLLM engine in a process of its own, kept busy for a time.

    python benchmarks/faults_load.py PLAN

PLAN is JSON: ``arguments`` (of ``vllm.LLM``) and ``events`` (a file to write). Each line on
stdin is a command ``{"op": ..., ...}``, answered by ``{"ok": ...}`` or ``{"error": text}`` on
stdout when it is done:

    stream  keep 32 requests going for ``seconds``, of a ``pool`` of prompts (0: none twice), in an
            order that is the same every time
    all     the first ``count`` prompts, 32 at a time
    each    the first ``count`` prompts one at a time, each with vLLM's prefix cache reset
    stop    shut the engine down and end

The events are JSON lines, written as they happen, so that they survive the end of this process
whatever it is: ``add`` and ``done`` of requests, ``loads`` when kvshelf has loaded chunks, and
``counters``, all series of kvshelf, at the end of a command. Times are of the monotonic clock,
which all processes of a machine share; ``Run`` reads them again, in the process of the benchmark.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.harness.engines import (
    CHUNK_TOKENS,
    LOGPROB_TOLERANCE,
    EngineFailedError,
    engine_environment,
)

IN_FLIGHT = 32
CHUNKS = 7
PROMPT_TOKENS = CHUNKS * CHUNK_TOKENS + 5  # vLLM always computes the last token itself
ANSWER_TOKENS = 8
CACHED_REQUESTS = 40  # what vLLM's own cache holds
ORDER_SEED = 1
CORES = sorted(os.sched_getaffinity(0))
ENGINE_CORE, SERVER_CORE = CORES[0], CORES[-1]
LOADS = "kvshelf:load_chunks_total"
SAMPLE_SECONDS = 0.1
RESET_SECONDS = 60.0  # stores that hang hold blocks; then the cache cannot be reset


def prompt_tokens(index: int) -> list[int]:
    """Text as seed: of numbers, random takes the absolute value."""
    return random.Random(f"prompt {index}").choices(range(3, 250), k=PROMPT_TOKENS)


def counters(*names: str) -> dict[str, float]:
    """kvshelf's series by name and label; with names only those, which is much quicker."""
    from prometheus_client import REGISTRY

    registry: Any = REGISTRY.restricted_registry(names) if names else REGISTRY
    series: dict[str, float] = {}
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.startswith("kvshelf:") or sample.name.endswith(
                ("bucket", "created")
            ):
                continue
            labels = ",".join(
                value
                for key, value in sorted(sample.labels.items())
                if key not in ("model_name", "engine")
            )
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            series[name] = series.get(name, 0.0) + sample.value
    return series


def pinned(core: int) -> list[str]:
    """Words before a command that keep it, and all that it starts, on one core."""
    return ["taskset", "--cpu-list", str(core)]


class Engine:
    """faults_load.py in a process group of its own. Every wait has an end."""

    def __init__(self, directory: Path, arguments: dict[str, object]) -> None:
        self.events, self._log = directory / "events.jsonl", directory / "engine.log"
        self._pending = b""
        plan = {"arguments": arguments, "events": str(self.events)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*pinned(ENGINE_CORE), sys.executable, __file__, json.dumps(plan)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=engine_environment(),
                start_new_session=True,
            )

    def send(self, operation: str, **values: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, **values}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EngineFailedError(f"the engine is gone\n{self._tail()}") from error

    def wait(self, seconds: float) -> None:
        """For the answer to what was sent; the first is for the start."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise EngineFailedError(f"no answer in {seconds:.0f} s\n{self._tail()}")
            got = os.read(self._process.stdout.fileno(), 1 << 16)
            if not got:
                raise EngineFailedError(f"the engine ended\n{self._tail()}")
            self._pending += got
        line, _, self._pending = self._pending.partition(b"\n")
        reply = json.loads(line)
        if "error" in reply:
            raise EngineFailedError(f"{reply['error']}\n{self._tail()}")

    def ask(self, seconds: float, operation: str, **values: object) -> None:
        self.send(operation, **values)
        self.wait(seconds)

    def stop(self) -> None:
        with contextlib.suppress(EngineFailedError, subprocess.TimeoutExpired):
            self.send("stop")
            self._process.wait(45)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


def verdict(mine: dict[str, Any], right: dict[str, Any]) -> str:
    """A tie: at the first other token, the two were equally likely within the tolerance. Batches of
    another shape may then choose the other; what follows cannot be compared."""
    for my_token, my_logprob, token, logprob in zip(
        mine["tokens"], mine["logprobs"], right["tokens"], right["logprobs"], strict=True
    ):
        if not abs(my_logprob - logprob) <= LOGPROB_TOLERANCE:  # NaN is wrong too
            return "wrong"
        if my_token != token:
            return "tie"
    return "right"


@dataclass
class Run:
    """What an arm did. Times are seconds since its start."""

    arm: str
    start: float
    seconds: float
    requests: list[dict[str, Any]] = field(default_factory=list)
    unfinished: list[float] = field(default_factory=list)  # their arrivals
    loads: list[tuple[float, float]] = field(default_factory=list)  # when, chunks so far
    counters: dict[str, float] = field(default_factory=dict)
    injected: dict[str, int] = field(default_factory=dict)
    error: str | None = None

    def read(self, events: Path, until: float = float("inf")) -> None:
        """What happened from the start on, and before ``until`` on the monotonic clock."""
        arrivals: dict[str, float] = {}
        for line in events.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # the last line of a process that was killed
                break
            if not self.start <= event["time"] < until:
                continue
            if event["kind"] == "add":
                arrivals[event["name"]] = event["arrival"] - self.start
            elif event["kind"] == "done" and arrivals.pop(event["name"], None) is not None:
                for name in ("arrival", "first", "finish"):
                    event[name] -= self.start
                self.requests.append(event)
            elif event["kind"] == "loads":
                self.loads.append((event["time"] - self.start, event["chunks"]))
            elif event["kind"] == "counters":
                self.counters = event["series"]
        self.unfinished = list(arrivals.values())

    def rate(self, begin: float, end: float) -> float:
        return sum(begin <= each["finish"] < end for each in self.requests) / (end - begin)

    def slowest(self, begin: float, end: float) -> float:
        """The longest time of a request that was under way between the two."""
        spans = [(each["arrival"], each["finish"]) for each in self.requests]
        spans += [(arrival, self.seconds) for arrival in self.unfinished]
        return max((b - a for a, b in spans if a < end and b > begin), default=0.0)

    def from_shelf(self) -> list[dict[str, Any]]:
        """Requests with cached tokens that vLLM's own cache cannot have held any more."""
        found = []
        seen: dict[int, set[int]] = {}  # prompt -> others that came since it was last asked for
        for each in sorted(self.requests, key=lambda request: request["arrival"]):
            index = each["prompt"]
            others = seen.get(index, set())
            if each["cached"] > 0 and len(others) >= CACHED_REQUESTS + 5:
                found.append(each)
            for since in seen.values():
                since.add(index)
            seen[index] = set()
        return found

    def first_tokens(self) -> dict[int, float]:
        return {each["prompt"]: each["first"] - each["arrival"] for each in self.requests}

    def summary(self, bin_seconds: float) -> dict[str, object]:
        bins = max(1, round(self.seconds / bin_seconds))
        edges = [bin_seconds * i for i in range(bins + 1)]
        return {
            "arm": self.arm,
            "finished": len(self.requests),
            "bin_seconds": round(bin_seconds, 2),
            "finished_per_second": [
                round(self.rate(a, b), 1) for a, b in itertools.pairwise(edges)
            ],
            "requests_from_shelf": len(self.from_shelf()),
            "counters": {name: round(value, 3) for name, value in self.counters.items()},
            "faults_injected": self.injected,
            "error": self.error,
        }


class Load:
    """An engine and its requests under way."""

    def __init__(self, plan: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self._llm = LLM(**plan["arguments"])
        self._engine = self._llm.llm_engine
        self._sampling = SamplingParams(
            temperature=0.0,
            max_tokens=ANSWER_TOKENS,
            min_tokens=ANSWER_TOKENS,
            ignore_eos=True,
            logprobs=0,  # the chosen token's
            detokenize=False,
        )
        self._events = Path(plan["events"]).open("w", buffering=1)  # noqa: SIM115 - until the end
        self._flying: dict[str, dict[str, Any]] = {}
        self._added = 0
        self._loads, self._sampled = 0.0, 0.0

    def stream(self, seconds: float, pool: int) -> None:
        end = time.monotonic() + seconds
        order = random.Random(ORDER_SEED)
        number = 0
        while time.monotonic() < end:
            while len(self._flying) < IN_FLIGHT:
                self._add(order.randrange(pool) if pool else number)
                number += 1
            self._step()
        self._engine.abort_request(list(self._flying))
        self._flying.clear()

    def all(self, count: int) -> None:
        waiting = list(range(count))
        while waiting or self._flying:
            while waiting and len(self._flying) < IN_FLIGHT:
                self._add(waiting.pop(0))
            self._step()

    def each(self, count: int) -> None:
        for index in range(count):
            self.reset()
            self._add(index)
            while self._flying:
                self._step()

    def reset(self) -> None:
        deadline = time.monotonic() + RESET_SECONDS
        while not self._llm.reset_prefix_cache():
            if time.monotonic() > deadline:
                raise TimeoutError("the prefix cache could not be reset")
            time.sleep(0.02)

    def warm_up(self) -> None:
        """First calls allocate and compile; these prompts are outside every pool."""
        for index in range(-4, 0):
            self._add(index)
        while self._flying:
            self._step()

    def write_counters(self) -> None:
        self._event("counters", series=counters())

    def close(self) -> None:
        self._engine.engine_core.shutdown(timeout=30)

    def _event(self, kind: str, **values: Any) -> None:
        self._events.write(json.dumps({"kind": kind, "time": time.monotonic(), **values}) + "\n")

    def _add(self, index: int) -> None:
        name = f"r{self._added}"
        self._added += 1
        tokens = prompt_tokens(index)
        self._flying[name] = {"prompt": index, "arrival": time.monotonic()}
        self._event("add", name=name, **self._flying[name])
        self._engine.add_request(name, {"prompt_token_ids": tokens}, self._sampling)

    def _step(self) -> None:
        outputs = self._engine.step()
        now = time.monotonic()
        for output in outputs:
            request = self._flying.get(output.request_id)
            if request is None:  # aborted
                continue
            request.setdefault("first", now)
            if output.finished:
                del self._flying[output.request_id]
                answer = output.outputs[0]
                self._event(
                    "done",
                    name=output.request_id,
                    **request,
                    finish=now,
                    cached=output.num_cached_tokens or 0,
                    tokens=list(answer.token_ids),
                    logprobs=[
                        position[token].logprob
                        for token, position in zip(answer.token_ids, answer.logprobs, strict=True)
                    ],
                )
        if now - self._sampled >= SAMPLE_SECONDS:
            self._sampled = now
            loads = sum(counters(LOADS).values())
            if loads != self._loads:
                self._loads = loads
                self._event("loads", chunks=loads)


def main() -> None:
    # Descriptor 1 becomes stderr, for what vLLM and its children print.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    load = Load(json.loads(sys.argv[1]))
    load.warm_up()
    print(json.dumps({"ok": "ready"}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        operation = command.pop("op")
        if operation == "stop":
            break
        try:
            getattr(load, operation)(**command)
            load.write_counters()
            reply = {"ok": operation}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)
    load.close()


if __name__ == "__main__":
    main()
