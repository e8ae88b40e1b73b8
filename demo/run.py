"""The demo: two engines, one directory, and what happens when its files go bad.

    python demo/run.py [--keep DIR]

Makes a tiny model and asks five prompts of an engine without kvshelf, of engine A and of engine B.
A and B are separate processes with nothing in common but a directory; A has ended before B starts.
Exit status 0 says that every answer, logprobs included, was that of the engine without kvshelf,
that hits were real (vLLM's num_cached_tokens), and that nothing crashed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import isinf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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

from damage import DAMAGES, chunk_files, unreadable

CHUNKS_PER_PROMPT = 20
# vLLM always computes a prompt's last token itself: one more than whole chunks.
PROMPT_TOKENS = CHUNKS_PER_PROMPT * CHUNK_TOKENS + 1
WARM_UP_SEED = 1 << 32
WARM_UP_TOKENS = CHUNK_TOKENS // 2  # less than a chunk, so that nothing of it is stored
DAMAGE_EVERY = 5
STORE_SECONDS = 30.0  # write-behind takes milliseconds on a local disk


class Hits(Enum):
    """Which cached tokens a step must show, of its prompts' whole chunks."""

    NONE = "none"
    ALL = "all"
    SOME = "fewer than all"

    def fit(self, cached: int, chunk_tokens: int) -> bool:
        if self is Hits.NONE:
            return cached == 0
        return cached == chunk_tokens if self is Hits.ALL else cached < chunk_tokens


@dataclass(frozen=True, slots=True)
class Want:
    """What a step must show beside right answers; ``failed_loads`` None: some, but any number."""

    hits: Hits
    failed_loads: int | None = 0

    def fit(self, cached: int, chunk_tokens: int, failed_loads: int) -> bool:
        if self.failed_loads is None:
            return self.hits.fit(cached, chunk_tokens) and failed_loads > 0
        return self.hits.fit(cached, chunk_tokens) and failed_loads == self.failed_loads


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was asked, and whether it was right.

    Tokens are sums over the prompts of the step, the time to first token is their median.

    Attributes:
        cached_tokens: vLLM's num_cached_tokens, less those that it recomputed after failed loads:
            it counts them when it admits a request, before it loads.
        failed_loads: chunks that kvshelf counted as failed to load.
        difference: the largest difference of a logprob from the engine without kvshelf, infinite
            if a token differs.
        fits: whether cached tokens and failed loads are what the step must show.
    """

    step: str
    first_token_seconds: float
    cached_tokens: int
    prompt_tokens: int
    failed_loads: int
    difference: float
    fits: bool

    @property
    def agrees(self) -> bool:
        return self.difference <= LOGPROB_TOLERANCE

    def line(self) -> str:
        difference = "tokens differ" if isinf(self.difference) else f"{self.difference:.1e}"
        verdict = "ok"
        if not self.agrees:
            verdict = "WRONG ANSWER"
        elif not self.fits:
            verdict = "NOT AS EXPECTED"
        return (
            f"{self.step:<40} {self.first_token_seconds * 1e3:>9.1f} "
            f"{self.cached_tokens:>7} of {self.prompt_tokens:<6} {self.failed_loads:>6} "
            f"{difference:>14}  {verdict}"
        )


ALL_HITS = Want(Hits.ALL)
# So that what is shown depends on no time, on the busiest machine: a lookup is waited for, and
# believed until the load that meets the damage.
PATIENCE = {"lookup_wait_seconds": 5, "hit_ttl_seconds": 3600}
WIDTH = 98
HEADER = (
    f"{'step':<40} {'TTFT (ms)':>9} {'cached tokens':>17} {'failed':>6} "
    f"{'max |dlogprob|':>14}  result\n" + "-" * WIDTH
)


def no_op() -> None:
    """Nothing."""


class Demo:
    """One run of it. ``rows`` and ``complaints`` grow as steps are done."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.shelf = work / "shelf"
        self.shelf.mkdir()
        self.model = make_tiny_model(work / "tiny-llama")
        self.prompts = [make_prompt(seed, PROMPT_TOKENS) for seed in range(len(DAMAGES))]
        self.all = range(len(self.prompts))
        self.rows: list[Row] = []
        self.complaints: list[str] = []
        self.truth: list[Answer] = []
        self.files: list[list[Path]] = []  # each prompt's chunk files, sorted by name

    def run(self) -> bool:
        """Whether all was as promised."""
        print(HEADER, flush=True)
        with self._engine("plain", None) as plain:
            self._measure("no kvshelf, cold", plain, self.all, Want(Hits.NONE))
            self._end(plain)
        with self._engine("A", self.shelf) as engine:
            self._first_engine(engine)
            self._end(engine)
        with self._engine("B", self.shelf) as engine:
            self._second_engine(engine)
            self._end(engine)
        return not self.complaints and all(row.agrees and row.fits for row in self.rows)

    def _first_engine(self, engine: EngineProcess) -> None:
        self._measure("A, cold", engine, self.all, Want(Hits.NONE), after_each=self._await_stores)
        engine.reset_prefix_cache()
        self._measure("A again, its prefix cache reset", engine, self.all)

    def _second_engine(self, engine: EngineProcess) -> None:
        self._measure("B, first time", engine, self.all)
        for index, kind in enumerate(DAMAGES):
            # B loads this prompt once more and then trusts its lookups for a while
            # (hit_ttl_seconds): it meets the damage when it loads, not before. So "deleted" is
            # "deleted after lookup".
            engine.reset_prefix_cache()
            self._ask(engine, [index])
            engine.reset_prefix_cache()
            spoiled = self._spoil(index, kind)
            want = Want(Hits.SOME, failed_loads=len(spoiled))
            self._measure(f"B, 1 chunk in {DAMAGE_EVERY} {kind}", engine, [index], want)
            self._await_healing(spoiled, kind)
        engine.reset_prefix_cache()
        self._measure("B again, the damage healed", engine, self.all)
        engine.reset_prefix_cache()
        with unreadable(self.shelf):
            want = Want(Hits.NONE, failed_loads=None)
            self._measure("B, directory unreadable (ENOTDIR)", engine, self.all, want)

    def _engine(self, name: str, shelf: Path | None) -> EngineProcess:
        arguments = engine_arguments(self.model, shelf, **PATIENCE)
        return EngineProcess(name, arguments, self.work / f"{name}.log")

    def _end(self, engine: EngineProcess) -> None:
        if not engine.stop():
            self.complaints.append(f"engine {engine.name} did not end in good order")

    def _ask(
        self, engine: EngineProcess, indices: Sequence[int], after_each: Callable[[], None] = no_op
    ) -> list[Answer]:
        """One prompt after the other: the time to first token is that of a request alone.

        A short request goes first: after a pause the first one of all is slower in any engine.
        """
        engine.generate([make_prompt(WARM_UP_SEED, WARM_UP_TOKENS)])
        answers = []
        for index in indices:
            answers += engine.generate([self.prompts[index]])
            after_each()
        return answers

    def _measure(
        self,
        step: str,
        engine: EngineProcess,
        indices: Sequence[int],
        want: Want = ALL_HITS,
        after_each: Callable[[], None] = no_op,
    ) -> None:
        """Ask these prompts, compare, and print a row."""
        failed_before, recomputed_before = failed_loads(engine), recomputed_tokens(engine)
        answers = self._ask(engine, indices, after_each)
        self.truth = self.truth or answers  # the first engine of all has no kvshelf
        failed = failed_loads(engine) - failed_before
        recomputed = recomputed_tokens(engine) - recomputed_before
        cached = max(0, sum(answer.cached_tokens for answer in answers) - recomputed)
        row = Row(
            step=step,
            first_token_seconds=statistics.median(a.first_token_seconds for a in answers),
            cached_tokens=cached,
            prompt_tokens=PROMPT_TOKENS * len(answers),
            failed_loads=failed,
            difference=max(
                answer.difference(self.truth[index])
                for index, answer in zip(indices, answers, strict=True)
            ),
            fits=want.fit(cached, CHUNKS_PER_PROMPT * CHUNK_TOKENS * len(answers), failed),
        )
        self.rows.append(row)
        print(row.line(), flush=True)

    def _await_stores(self) -> None:
        """Wait for a prompt's chunk files, and note them as the next prompt's."""
        known = {path for files in self.files for path in files}
        deadline = time.monotonic() + STORE_SECONDS
        while len(new := chunk_files(self.shelf) - known) < CHUNKS_PER_PROMPT:
            if time.monotonic() > deadline:
                self.complaints.append(f"{len(new)} of {CHUNKS_PER_PROMPT} chunks were stored")
                break
            time.sleep(0.02)
        self.files.append(sorted(new))

    def _spoil(self, index: int, kind: str) -> dict[Path, tuple[int, int] | None]:
        """Damage one in five of a prompt's files; their state after that."""
        files, spoiled = self.files[index], {}
        for path in files[::DAMAGE_EVERY]:
            DAMAGES[kind](path, files)
            spoiled[path] = file_state(path)
        return spoiled

    def _await_healing(self, spoiled: dict[Path, tuple[int, int] | None], kind: str) -> None:
        """Wait until each damaged file was replaced by a new one."""
        deadline = time.monotonic() + STORE_SECONDS
        while sick := [p for p, was in spoiled.items() if file_state(p) in (None, was)]:
            if time.monotonic() > deadline:
                self.complaints.append(f"{kind}: {len(sick)} chunks were not stored anew")
                return
            time.sleep(0.02)


def failed_loads(engine: EngineProcess) -> int:
    """Chunks that failed to load so far, by kvshelf's own metric."""
    series = engine.metrics("kvshelf:load_failures_total")
    return int(sum(series.values()))


def recomputed_tokens(engine: EngineProcess) -> int:
    """Tokens that vLLM recomputed after failed loads so far; it says so in its log only."""
    log = engine.log.read_text(errors="replace")
    return sum(int(tokens) for tokens in re.findall(r"KV load failure: .*\((\d+) tokens", log))


def file_state(path: Path) -> tuple[int, int] | None:
    """Inode and time of change: a file system may give a new file a removed one's inode."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_ctime_ns


def run(work: Path) -> int:
    """The exit status, after all is printed."""
    began = time.monotonic()
    demo = Demo(work)
    try:
        good = demo.run()
    except EngineFailedError as error:
        demo.complaints.append(str(error))
        good = False
    for complaint in demo.complaints:
        print(f"FAILED: {complaint}")
    worst = max((row.difference for row in demo.rows), default=0.0)
    print(
        f"\n{len(demo.rows)} steps in {time.monotonic() - began:.0f} s; logprobs differ by at most "
        f"{worst:.1e} (allowed: {LOGPROB_TOLERANCE:.0e}). "
        + ("All answers agree, and the hits are real." if good else "NOT as promised; see above.")
    )
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="work in this new directory, and leave it")
    keep = parser.parse_args().keep
    if keep is not None:
        keep.mkdir(parents=True)
        return run(keep)
    with tempfile.TemporaryDirectory(prefix="kvshelf-demo-") as work:
        return run(Path(work))


if __name__ == "__main__":
    sys.exit(main())
