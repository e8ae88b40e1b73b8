"""What an engine loses when its shelf's storage hangs, is slow or is full.

    python benchmarks/bench_faults.py CASE [--seconds-scale 1.0] [--out FILE] [--directory DIR]

Each case runs the same requests through a real vLLM CPU engine with a tiny model, without kvshelf
(arm ``none``) and with it at its default settings on a file system with faults on demand (arm
``kvshelf``). Needs root, /dev/fuse and the fault-injecting file system, KVSHELF_FAULTFS or
../shared/storage/faultfs.py. The cases:

    hung         20 s of stores and hits, 60 s in which no call to the storage returns (its server
                 is stopped), 30 s more
    slow-writes  25 s of stores only, to storage that takes a third of the bytes made; three times
                 an arm, in turn
    full         stores only: 15 s, then 60 s of ENOSPC, 20 s more
    slow-reads   40 stored prompts one at a time, from storage that takes five times as long to
                 read one as the engine to compute it
    all          one after the other

The engine has one core and the file server another, so that arms differ by kvshelf alone. vLLM's
own cache holds 40 requests of a pool of 150 prompts: other hits come from the shelf. Prints one
line a figure and replaces the case's part of benchmarks/results/faults.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

from bench_engine import file_system, machine
from engines import (
    BLOCK_TOKENS,
    CHUNK_TOKENS,
    START_SECONDS,
    EngineFailedError,
    engine_arguments,
)
from faults_load import (
    ANSWER_TOKENS,
    CACHED_REQUESTS,
    CHUNKS,
    ENGINE_CORE,
    IN_FLIGHT,
    PROMPT_TOKENS,
    SERVER_CORE,
    Engine,
    Run,
    pinned,
    verdict,
)

REPOSITORY = Path(__file__).parents[1]
POOL = 150
ROOMY_REQUESTS = 160
PROMPTS_ONE_BY_ONE = 40
GRACE_SECONDS = 60.0  # beyond a command's planned time: then its engine is killed
FULL = {"write": "ENOSPC", "create": "ENOSPC", "mkdir": "ENOSPC"}


def server_script() -> Path:
    named = os.environ.get("KVSHELF_FAULTFS")
    return Path(named) if named else REPOSITORY.parent / "shared/storage/faultfs.py"


def why_not() -> str | None:
    """The reason why this cannot run here, or None."""
    if not server_script().is_file():
        return f"no fault-injecting file system at {server_script()}; set KVSHELF_FAULTFS"
    if os.geteuid() != 0:
        return "mounting needs root"
    return None if Path("/dev/fuse").exists() else "there is no /dev/fuse"


class Mount:
    """``source`` is the real directory, ``path`` the same behind a server with faults."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.source, self.path = directory / "source", directory / "mount"
        self._control, self._stats = directory / "control.json", directory / "stats.json"
        for folder in (self.source, self.path):
            folder.mkdir(parents=True)
        self.inject()
        command = [*pinned(SERVER_CORE), sys.executable, str(server_script())]
        command += [str(self.source), str(self.path)]
        command += ["--control", str(self._control), "--stats", str(self._stats), *options]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        ready = select.select([self._server.stdout], [], [], 20)[0]
        if not ready or b"mounted" not in self._server.stdout.readline():
            self.close()
            raise OSError("the file system did not mount")

    def inject(self, **faults: object) -> None:
        """Replace the faults in force from the next call on; none without arguments."""
        new = self._control.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.rename(self._control)

    def freeze(self) -> None:
        """No call returns any more, whatever it is: harder than the server's own stalls, which
        spare writes and metadata, and as sudden as a file server that loses its power."""
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def chunk_files(self) -> set[str]:
        return {path.name for path in self.source.rglob("*.kv")}

    def injected(self) -> dict[str, int]:
        try:
            return dict(json.loads(self._stats.read_text())["injected"])
        except (OSError, ValueError, KeyError):
            return {}

    def close(self) -> None:
        self.thaw()
        self.inject()
        self._server.terminate()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait(10)
        # A killed server leaves calls that wait for it; force ends them.
        subprocess.run(
            ["umount", "-f", "-l", str(self.path)], capture_output=True, check=False, timeout=20
        )


class Site:
    """Where runs take place: a model, and a new mount and engine for each run."""

    def __init__(self, directory: Path, scale: float) -> None:
        self.directory, self.scale = directory, scale
        self.model = directory / "model"
        subprocess.run(
            [sys.executable, str(REPOSITORY / "demo/tiny_model.py"), str(self.model)],
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
    ) -> Iterator[tuple[Engine, Mount | None, Run]]:
        """An engine that is ready. Its failure after that is a finding, noted in the run."""
        self._runs += 1
        folder = self.directory / f"run{self._runs}"
        folder.mkdir()
        mount = Mount(folder / "storage") if arm == "kvshelf" else None
        try:
            shelf = None
            if mount is not None:
                shelf = mount.path / "shelf"
                shelf.mkdir()
            per_request = -(-(PROMPT_TOKENS + ANSWER_TOKENS) // BLOCK_TOKENS)
            arguments = engine_arguments(self.model, shelf) | {
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
                    mount.inject()
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
        script: Sequence[tuple[float, Callable[[Mount], object]]] = (),
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
                while len(mount.chunk_files()) < CHUNKS * count and time.monotonic() < deadline:
                    time.sleep(0.1)
                time.sleep(2)  # past what is believed to be absent
                mount.inject(bandwidth_mb_s=mb_per_second)
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


@dataclass
class Case:
    """Figures with what they are to reach, and what they came from."""

    runs: list[Run]
    figures: dict[str, float | None] = field(default_factory=dict)
    goals: dict[str, str] = field(default_factory=dict)

    def figure(self, name: str, value: float | None, goal: str | None = None) -> None:
        self.figures[name] = None if value is None else round(value, 4)
        if goal is not None:
            self.goals[name] = goal
        shown = "never" if value is None else f"{value:.3f}"
        print(f"{name:58s} {shown:>10s}{f'   to be {goal}' if goal else ''}", flush=True)

    def rates(self, windows: dict[str, tuple[float, float]], goals: dict[str, str]) -> None:
        for name, window in windows.items():
            medians = {
                arm: statistics.median(run.rate(*window) for run in self.runs if run.arm == arm)
                for arm in ("none", "kvshelf")
            }
            for arm, rate in medians.items():
                self.figure(f"{name}: requests/s, {arm}", rate)
                each = [round(run.rate(*window), 2) for run in self.runs if run.arm == arm]
                if len(each) > 1:
                    print(f"  of {each}")
            ratio = medians["kvshelf"] / medians["none"] if medians["none"] else None
            self.figure(f"{name}: ratio", ratio, goals.get(name))

    def answers(self) -> None:
        """Every answer against the first that an engine without kvshelf gave to the prompt."""
        truth: dict[int, dict[str, Any]] = {}
        for run in self.runs:
            if run.arm == "none":
                for each in run.requests:
                    truth.setdefault(each["prompt"], each)
        verdicts: dict[str, list[str]] = {"none": [], "kvshelf": []}
        for run in self.runs:
            for each in run.requests:
                if each["prompt"] in truth:
                    verdicts[run.arm].append(verdict(each, truth[each["prompt"]]))
        self.figure("answers compared", len(verdicts["kvshelf"]))
        self.figure("wrong answers", verdicts["kvshelf"].count("wrong"), "0")
        self.figure("wrong answers of arm none itself", verdicts["none"].count("wrong"), "0")
        self.figure("answers that differ by a tie", verdicts["kvshelf"].count("tie"))
        self.figure("requests that did not run to their end", sum(bool(r.error) for r in self.runs))


def hung(site: Site) -> Case:
    warm, end, after = 20 * site.scale, 80 * site.scale, 110 * site.scale
    script = [(warm, Mount.freeze), (end, Mount.thaw)]
    case = Case([site.stream(arm, after, POOL, script) for arm in ("none", "kvshelf")])
    windows = {
        "before": (warm / 2, warm),
        "hung": (warm + 12 * site.scale, end),
        "after": (end, after),
    }
    case.rates(windows, {"hung": ">= 0.95"})
    for run in case.runs:
        case.figure(f"longest request while hung, s, {run.arm}", run.slowest(warm, end))
    run = case.runs[-1]
    # Counted up to the end of the hang; one that ends later is a load that works again.
    loaded = [at - end for at, _ in run.loads if at > end]
    case.figure("after the hang, s until chunks are loaded", min(loaded, default=None), "<= 10")
    hits = [each["first"] - end for each in run.from_shelf() if each["first"] > end]
    case.figure("after the hang, s until a request's hit", min(hits, default=None))
    return case


def slow_writes(site: Site) -> Case:
    seconds = 25 * site.scale
    first = site.stream("none", seconds, 0)
    made = first.rate(0, seconds) * site.prompt_bytes / 1e6
    limit = made / 3

    def slow(mount: Mount) -> None:
        mount.inject(bandwidth_mb_s=limit)

    rest = ("kvshelf", "none", "kvshelf", "none", "kvshelf")
    runs = [first, *(site.stream(arm, seconds, 0, [(0.0, slow)]) for arm in rest)]
    case = Case(runs)
    case.figure("KV made by arm none, MB/s", made)
    case.figure("storage takes, MB/s", limit)
    case.rates({"all": (0, seconds), "second half": (seconds / 2, seconds)}, {"all": ">= 0.97"})
    for run in runs:
        case.figure(f"longest request, s, {run.arm}", run.slowest(0, seconds))
    return case


def full(site: Site) -> Case:
    begin, end, after = 15 * site.scale, 75 * site.scale, 95 * site.scale
    found: list[float] = []
    made_when_full: list[int] = []
    before: set[str] = set()

    def fill(mount: Mount) -> None:
        mount.inject(**FULL)
        time.sleep(0.5)  # writes that the server had begun
        before.update(mount.chunk_files())

    def clear(mount: Mount) -> None:
        known = mount.chunk_files()
        made_when_full.append(len(known - before))
        mount.inject()
        cleared = time.monotonic()
        while not found and time.monotonic() < cleared + after - end:
            if mount.chunk_files() - known:
                found.append(time.monotonic() - cleared)
            time.sleep(0.1)

    script = [(begin, fill), (end, clear)]
    case = Case([site.stream(arm, after, 0, script) for arm in ("none", "kvshelf")])
    windows = {"before": (begin / 3, begin), "full": (begin, end), "after": (end, after)}
    case.rates(windows, {"full": ">= 0.97"})
    for run in case.runs:
        case.figure(f"longest request while full, s, {run.arm}", run.slowest(begin, end))
    case.figure("chunk files made while full", sum(made_when_full))
    case.figure("after it, s until a chunk is stored", min(found, default=None), "<= 10")
    return case


def slow_reads(site: Site) -> Case:
    count = max(5, round(PROMPTS_ONE_BY_ONE * site.scale))
    chance, plain = site.one_by_one("none", count, None)
    compute = statistics.median(plain.first_tokens().values())
    limit = site.prompt_bytes / 1e6 / (5 * compute)
    (shelf,) = site.one_by_one("kvshelf", count, limit)
    case = Case([chance, plain, shelf])
    case.figure("computing a prompt, ms", 1e3 * compute)
    case.figure("storage gives, MB/s", limit)
    case.figure("so loading a prompt's chunks takes, ms", 5e3 * compute)
    for name, run, goal in (("none, again", chance, None), ("kvshelf", shelf, "<= 1.1")):
        mine, reference = run.first_tokens(), plain.first_tokens()
        ratios = [mine[index] / reference[index] for index in reference if index in mine]
        median = statistics.median(ratios) if ratios else None
        case.figure(f"time to first token against none: median, {name}", median, goal)
        case.figure(f"  worst, {name}", max(ratios, default=None))
        case.figure(f"  prompts of {count} above 1.1, {name}", sum(r > 1.1 for r in ratios))
    case.figure("  prompts answered from the shelf", sum(r["cached"] > 0 for r in shelf.requests))
    return case


CASES: dict[str, Callable[[Site], Case]] = {
    "hung": hung,
    "slow-writes": slow_writes,
    "full": full,
    "slow-reads": slow_reads,
}


def measure(name: str, directory: Path | None, scale: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=directory, prefix="kvshelf-faults-") as folder:
        kind = file_system(Path(folder))
        site = Site(Path(folder), scale)
        case = CASES[name](site)
    case.answers()
    return {
        "command": " ".join(["python", "benchmarks/bench_faults.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine() | {"engine_core": ENGINE_CORE, "file_server_core": SERVER_CORE},
        "file_system": f"{server_script().stem} (FUSE) on {kind}",
        "seconds_scale": scale,
        "requests_in_flight": IN_FLIGHT,
        "prompt_tokens": PROMPT_TOKENS,
        "chunk_tokens": CHUNK_TOKENS,
        "kv_bytes_of_a_prompt": site.prompt_bytes,
        "figures": case.figures,
        "goals": case.goals,
        "runs": [run.summary(5 * scale) for run in case.runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", choices=[*CASES, "all"])
    parser.add_argument("--seconds-scale", type=float, default=1.0, help="of all durations")
    parser.add_argument("--directory", type=Path, help="for the storage; default: a temp directory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/faults.json")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(f"bench_faults: {reason}")
    # As an exception, so that no stopped server and no engine outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench_faults: terminated"))
    os.sched_setaffinity(0, {SERVER_CORE})
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    failed = []
    for name in CASES if arguments.case == "all" else [arguments.case]:
        print(f"--- {name}", flush=True)
        try:
            results[name] = measure(name, arguments.directory, arguments.seconds_scale)
        except (EngineFailedError, OSError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    if failed:
        sys.exit(f"bench_faults: no figures of {', '.join(failed)}")


if __name__ == "__main__":
    main()
