"""Time to first token of hits on a real vLLM engine on a GPU, against computing and the limit.

    python benchmarks/gpu/first_token.py DIR --shapes 8b,one-head,fp8,mla
        --arms compute,kvshelf-ext4,kvshelf-tmpfs,fs-tmpfs,tier-tmpfs --out results.json

Each pair of a shape and an arm is an engine in a process of its own, with vLLM's settings as they
are, dummy weights and eager steps. Arms whose name ends in ``tmpfs`` keep their files in /dev/shm,
the others in DIR:

    compute   no connector
    fs        vLLM's TieringOffloadingSpec with its own ``fs`` tier
    tier      the same with KvshelfTier
    kvshelf   the direct path; only the path is set

``gpu hit`` is the same prompt while its KV is still in the GPU. The limit is that and the bytes of
its files at the rate of one pinned copy, measured in the same run. ``restart`` is a new engine on
the same files: its first hit, and later ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine import Engine, logprob_gap, milliseconds, prompt, write_model

LENGTHS = (4096, 16384, 65536)
HITS = 5


class Measured(Engine):
    """What is measured on one engine."""

    def warm(self) -> dict[str, Any]:
        """Compile what computing and a hit in the GPU need, so that no figure holds it."""
        self.first_token(4097, 123_456)
        first = self.first_token(4097, 123_456)[0]
        again = self.first_token(4097, 123_456)[0]
        self.settle()
        return {"first_gpu_hit_ms": milliseconds([first, again])}

    def single(self, has_files: bool) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for length in LENGTHS:
            before = self.settle() if has_files else 0
            cold, _, right = self.first_token(length + 1, length)
            row: dict[str, Any] = {"cold_ms": round(1e3 * cold, 1)}
            if has_files:
                row["bytes"] = self.settle() - before
                row.update(self.hits(length, length, right))
            row["gpu_hit_ms"] = milliseconds(
                [self.first_token(length + 1, length)[0] for _ in range(3)]
            )
            rows[str(length)] = row
            self.forget()
        return rows

    def hits(self, length: int, seed: int, right: Any = None) -> dict[str, Any]:
        times, cached, answers = [], [], []
        for _ in range(HITS):
            self.forget()
            seconds, tokens, answer = self.first_token(length + 1, seed)
            times.append(seconds)
            cached.append(tokens)
            answers.append(answer)
        row: dict[str, Any] = {"hit_ms": milliseconds(times), "cached_tokens": cached}
        if right is not None:
            row["same_tokens"] = all(list(a.token_ids) == list(right.token_ids) for a in answers)
            row["logprob_gap"] = max(logprob_gap(a, right) for a in answers)
        return row

    def many(self, requests: int = 24, length: int = 8192) -> dict[str, Any]:
        prompts = [prompt(length + 1, 5000 + i) for i in range(requests)]
        self.llm.generate(prompts, self.one, use_tqdm=False)
        self.settle()
        for each in prompts:  # what the queue of stores had no room for
            self.forget()
            self.llm.generate([each], self.one, use_tqdm=False)
        self.settle()
        rates, cached = [], []
        for _ in range(4):
            self.forget()
            start = time.perf_counter()
            outputs = self.llm.generate(prompts, self.one, use_tqdm=False)
            rates.append(round(requests * length / (time.perf_counter() - start)))
            cached.append(sum(o.num_cached_tokens or 0 for o in outputs))
        return {"tokens_per_s": rates, "cached_tokens": cached, "tokens": requests * length}

    def restart(self) -> dict[str, Any]:
        return {str(length): self.hits(length, length) for length in LENGTHS[:2]}

    def damaged(self, length: int = 32768) -> dict[str, Any]:
        """One chunk file in five cut short: same token, same logprob."""
        _, _, right = self.first_token(length + 1, 77)
        self.settle()
        files = sorted(self.root.rglob("*.kv"), key=lambda p: p.stat().st_mtime)[-length // 256 :]
        for path in files[::5]:
            os.truncate(path, path.stat().st_size // 2)
        self.forget()
        _, tokens, out = self.first_token(length + 1, 77)
        return {
            "files": len(files),
            "damaged": len(files[::5]),
            "cached_tokens": tokens,
            "same_tokens": list(out.token_ids) == list(right.token_ids),
            "logprob_gap": logprob_gap(out, right),
        }

    def steps(self) -> dict[str, Any]:
        """Time between steps of 16 running requests, quiet and while prompts are loaded."""
        from vllm import SamplingParams

        engine = self.llm.llm_engine
        running = SamplingParams(temperature=0, max_tokens=600, ignore_eos=True)
        stored = [prompt(4097, 31_000 + i) for i in range(16)]
        for each in stored:
            self.llm.generate([each], self.one, use_tqdm=False)
            self.settle()
        result: dict[str, Any] = {}
        for phase in ("quiet", "loading", "quiet", "loading"):
            self.forget()
            for i in range(16):
                engine.add_request(f"{phase}-{i}", prompt(256, 40_000 + i), running)
            gaps: list[float] = []
            last, step, fed = time.perf_counter(), 0, 0
            while engine.has_unfinished_requests():
                if phase == "loading" and step > 60 and step % 20 == 0 and fed < len(stored):
                    engine.add_request(f"load-{step}", stored[fed], self.one)
                    fed += 1
                outputs = engine.step()
                if any(o.request_id.startswith(phase) for o in outputs):
                    now = time.perf_counter()
                    gaps.append(now - last)
                    last = now
                step += 1
            gaps = sorted(gaps[50:])
            at = [gaps[int(part * (len(gaps) - 1))] for part in (0.5, 0.9, 0.99)]
            result.setdefault(phase, []).append(
                dict(zip(("p50_ms", "p90_ms", "p99_ms"), milliseconds(at), strict=True))
            )
        return result


def pinned_gb_per_second() -> float:
    """One pinned copy into the GPU, in a process of its own."""
    code = (
        "import statistics, transfer\n"
        "print(statistics.median(transfer.pinned_copy('cuda:0')[0] for _ in range(5)))\n"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    return round(float(done.stdout), 1)


def machine() -> dict[str, Any]:
    import torch

    return {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).date().isoformat(),
        "card": torch.cuda.get_device_name(0),
        "cores": os.cpu_count(),
        "vllm": version("vllm"),
    }


def child(args: argparse.Namespace) -> None:
    """Measure one engine; what is known is written after every phase."""
    started = time.perf_counter()
    more: dict[str, Any] = {"enforce_eager": False} if "steps" in args.phases else {}
    root = args.directory / "shelf"
    engine = Measured(args.arm, args.shape, root, args.model, **more)
    result: dict[str, Any] = {"start_s": round(time.perf_counter() - started, 1)}
    has_files = args.arm != "compute"
    result["warm"] = engine.warm()
    phases = {
        "single": lambda: engine.single(has_files),
        "many": engine.many,
        "restart": engine.restart,
        "damaged": engine.damaged,
        "steps": engine.steps,
    }
    for name in args.phases.split(","):
        try:
            result[name] = phases[name]()
        except Exception as error:  # the other figures are kept
            result[name] = repr(error)
        args.out.write_text(json.dumps(result))


class Runner:
    """Starts engines one after the other and collects what they wrote."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.logs = args.out.parent
        self.deadline = time.monotonic() + args.seconds

    def engine(self, shape: str, arm: str, phases: str, home: Path) -> dict[str, Any]:
        left = self.deadline - time.monotonic()
        if left < 45:
            return {"not run": "no time was left"}
        model = write_model(home / "model", shape)
        (home / "shelf").mkdir(exist_ok=True)
        out = home / "out.json"
        out.unlink(missing_ok=True)
        command = [sys.executable, __file__, str(home), "--arm", arm, "--shape", shape]
        command += ["--model", model, "--out", str(out), "--phases", phases]
        log_path = self.logs / f"{shape}-{arm}-{phases.replace(',', '-')}.log"
        with log_path.open("w") as log:
            # A session of its own: the engine's processes end with it, and free the GPU.
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            limit = min(left, self.args.engine_seconds)
            timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            code = process.wait()
            timer.cancel()
        found = json.loads(out.read_text()) if out.exists() else {}
        return found if code == 0 else {**found, "exit": code, "log": log_path.name}

    def pair(self, shape: str, arm: str, save: Callable[[dict[str, Any]], None]) -> None:
        base = Path("/dev/shm") if arm.endswith("tmpfs") else self.args.directory
        home = base / f"first-token-{shape}-{arm}"
        phases = "single,many" if shape == "8b" and arm != "compute" else "single"
        if arm.startswith("kvshelf"):
            phases += ",damaged"
        phases = self.args.only or phases
        try:
            found = self.engine(shape, arm, phases, home)
            save(found)
            if self.args.restart and arm.startswith("kvshelf"):
                again = self.engine(shape, arm, "restart", home)
                found["restart"] = again.get("restart", again)
                save(found)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def with_limits(found: dict[str, Any], rate: float) -> None:
    """Adds limit and ratio to each row."""
    for row in found.get("single", {}).values():
        if isinstance(row, dict) and "hit_ms" in row:
            limit = statistics.median(row["gpu_hit_ms"]) + row["bytes"] / rate / 1e6
            row["limit_ms"] = round(limit, 1)
            row["ratio"] = round(statistics.median(row["hit_ms"][1:]) / limit, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shapes", default="8b,one-head,fp8,mla")
    parser.add_argument("--arms", default="compute,kvshelf-ext4,kvshelf-tmpfs,fs-tmpfs,tier-tmpfs")
    parser.add_argument("--restart", action="store_true", help="also a new engine on the files")
    parser.add_argument("--only", help="these phases: single, many, damaged, steps (CUDA graphs)")
    parser.add_argument("--seconds", type=float, default=3600, help="start nothing after so long")
    parser.add_argument("--engine-seconds", type=float, default=240)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--phases", default="single", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        child(args)
        return
    rate = pinned_gb_per_second()
    results: dict[str, Any] = {**machine(), "pinned_gb_per_s": rate}
    runner = Runner(args)
    for shape in args.shapes.split(","):
        for arm in args.arms.split(","):

            def save(found: dict[str, Any], shape: str = shape, arm: str = arm) -> None:
                with_limits(found, rate)
                results.setdefault(shape, {})[arm] = found
                print(shape, arm, json.dumps(found), flush=True)
                args.out.write_text(json.dumps(results, indent=1) + "\n")

            runner.pair(shape, arm, save)


if __name__ == "__main__":
    main()
