"""Where bench_faults.py runs: a mount with faults on demand, and engines on it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.harness.engines import (
    BLOCK_TOKENS,
    CHUNK_TOKENS,
    START_SECONDS,
    EngineFailedError,
    engine_arguments,
)
from tests.harness.faulty_mount import REPOSITORY, FaultyMount

from faults_load import (
    ANSWER_TOKENS,
    CACHED_REQUESTS,
    CHUNKS,
    IN_FLIGHT,
    PROMPT_TOKENS,
    SERVER_CORE,
    Engine,
    Run,
    pinned,
)

POOL = 150
ROOMY_REQUESTS = 160
GRACE_SECONDS = 60.0  # beyond a command's planned time: then its engine is killed


def chunk_files(mount: FaultyMount) -> set[str]:
    return {path.name for path in mount.source.rglob("*.kv")}


class Site:
    """Where runs take place: a model, and a new mount and engine for each run."""

    def __init__(self, directory: Path, scale: float) -> None:
        self.directory, self.scale = directory, scale
        self.model = directory / "model"
        subprocess.run(
            [sys.executable, str(REPOSITORY / "tests/harness/tiny_model.py"), str(self.model)],
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
        )
        shape = json.loads((self.model / "config.json").read_text())
        head = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        heads = shape["num_hidden_layers"] * shape["num_key_value_heads"]
        self.prompt_bytes = CHUNKS * CHUNK_TOKENS * heads * head * 2 * 4  # K and V, float32
        self._runs = 0

    @contextlib.contextmanager
    def opened(
        self, arm: str, cached: int = CACHED_REQUESTS
    ) -> Iterator[tuple[Engine, FaultyMount | None, Run]]:
        """An engine that is ready. Its failure after that is a finding, noted in the run."""
        self._runs += 1
        folder = self.directory / f"run{self._runs}"
        folder.mkdir()
        mount = FaultyMount(folder / "storage", pinned(SERVER_CORE)) if arm == "kvshelf" else None
        try:
            shelf = None
            if mount is not None:
                shelf = mount.path / "shelf"
                shelf.mkdir()
            per_request = -(-(PROMPT_TOKENS + ANSWER_TOKENS) // BLOCK_TOKENS)
            arguments = engine_arguments(self.model, shelf, admission="auto") | {
                "max_num_seqs": IN_FLIGHT,
                "num_gpu_blocks_override": cached * per_request + 1,
            }
            engine = Engine(folder, arguments)
            try:
                engine.wait(START_SECONDS)
                run = Run(arm, time.monotonic(), 0.0)
                try:
                    yield engine, mount, run
                except EngineFailedError as error:
                    run.error = str(error)
                    print(f"{arm}: {error}", file=sys.stderr)
                run.read(engine.events)
                run.injected = mount.injected() if mount is not None else {}
            finally:
                if mount is not None:
                    mount.thaw()
                    mount.set()
                engine.stop()
        finally:
            if mount is not None:
                mount.close()
            shutil.rmtree(folder, ignore_errors=True)

    def stream(
        self,
        arm: str,
        seconds: float,
        pool: int,
        script: Sequence[tuple[float, Callable[[FaultyMount], object]]] = (),
    ) -> Run:
        """Requests without pause for some seconds. ``script`` changes the faults at its times."""
        # Prompts that never come again need no small cache, and an engine with hardly more blocks
        # than its requests need would only show that a store holds some for a step.
        with self.opened(arm, CACHED_REQUESTS if pool else ROOMY_REQUESTS) as (engine, mount, run):
            run.start, run.seconds = time.monotonic(), seconds
            engine.send("stream", seconds=seconds, pool=pool)
            if mount is not None:
                for at, change in script:
                    time.sleep(max(0.0, run.start + at - time.monotonic()))
                    change(mount)
            engine.wait(run.start + seconds + GRACE_SECONDS - time.monotonic())
        return run

    def one_by_one(self, arm: str, count: int, mb_per_second: float | None) -> list[Run]:
        """Passes over stored prompts: one, or two of arm none, whose difference is chance."""
        runs = []
        with self.opened(arm) as (engine, mount, run):
            engine.ask(GRACE_SECONDS + 3 * count, "all", count=count)
            if mount is not None:
                deadline = time.monotonic() + GRACE_SECONDS
                while len(chunk_files(mount)) < CHUNKS * count and time.monotonic() < deadline:
                    time.sleep(0.1)
                time.sleep(2)  # past what is believed to be absent
                mount.set(bandwidth_mb_s=mb_per_second)
            if mount is None:
                chance = Run(arm, time.monotonic(), 0.0)
                engine.ask(GRACE_SECONDS + 10 * count, "each", count=count)
                chance.seconds = time.monotonic() - chance.start
                chance.read(engine.events)
                runs.append(chance)
            run.start = time.monotonic()
            engine.ask(GRACE_SECONDS + 10 * count, "each", count=count)
            run.seconds = time.monotonic() - run.start
        return [*runs, run]
