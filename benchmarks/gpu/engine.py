"""Time to first token on a real vLLM engine on a GPU: hits against recomputation and vLLM's tier.

An 8B Llama shape with dummy weights. Each arm is an engine in a process of its own, one after the
other on the same card:

    recompute   no connector
    fs tier     vLLM's own TieringOffloadingSpec with its `fs` tier
    our tier    the same with KvshelfTier
    kvshelf     this project's direct path

    python benchmarks/gpu/engine.py DIR --out results.json [--arms recompute,kvshelf]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

LENGTHS = (4096, 16384, 65536)
# One token more than whole chunks: vLLM always computes the last prompt token itself.
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


def transfer_config(arm: str, root: str) -> dict[str, Any] | None:
    if arm == "recompute":
        return None
    if arm == "kvshelf":
        return {
            "kv_connector": "KvshelfConnector",
            "kv_connector_module_path": "kvshelf.vllm.connector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {
                "shared_storage_path": root,
                "block_size": 256,
                "read_preferring_ratio": 0.75,
                "threads_per_gpu": 12,
                "max_staging_memory_gb": 1.0,
            },
        }
    tier = {"type": "fs"}
    if arm == "our tier":
        tier = {"type": "KvshelfTier", "module_path": "kvshelf.vllm.tier"}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec",
            "block_size": 256,
            "cpu_bytes_to_use": 32 << 30,
            "secondary_tiers": [{**tier, "root_dir": root}],
        },
    }


def prompt(length: int, seed: int) -> dict[str, list[int]]:
    import random

    rng = random.Random(seed)
    return {"prompt_token_ids": [rng.randrange(10, 31000) for _ in range(length)]}


class Arm:
    """One engine in this process and what is measured on it."""

    def __init__(self, name: str, root: str, model: str) -> None:
        from vllm import LLM, SamplingParams

        self.one = SamplingParams(temperature=0, max_tokens=1, logprobs=1)
        self.name = name
        self.root = Path(root)
        self.llm = LLM(
            model=model,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="bfloat16",
            block_size=16,
            gpu_memory_utilization=0.85,
            max_model_len=70000,
            max_num_batched_tokens=16384,
            disable_log_stats=True,
            kv_transfer_config=transfer_config(name, root),
        )

    def ttft(self, length: int, seed: int) -> tuple[float, int, Any]:
        start = time.perf_counter()
        (output,) = self.llm.generate([prompt(length, seed)], self.one, use_tqdm=False)
        seconds = time.perf_counter() - start
        return seconds, output.num_cached_tokens or 0, output.outputs[0]

    def settle(self, steps: int = 8) -> None:
        """Run idle steps until write-behind is done: reports come with steps."""
        for i in range(steps):
            self.ttft(32, 900_000 + i)
            time.sleep(0.25)

    def forget(self) -> None:
        """Empty the GPU's cache, and the tier's in host memory: what is left is in the files."""
        if self.name.endswith("tier"):
            self.llm.reset_prefix_cache(reset_connector=True)
        else:
            self.llm.reset_prefix_cache()

    def single(self, repeats: int) -> dict[str, Any]:
        rows = {}
        for length in LENGTHS:
            cold, hits, cached = [], [], []
            first = None
            for seed in range(repeats):
                seconds, _, out = self.ttft(length + 1, seed * 7 + length)
                cold.append(seconds)
                self.settle()
                self.forget()
                seconds, tokens, again = self.ttft(length + 1, seed * 7 + length)
                hits.append(seconds)
                cached.append(tokens)
                if seed == 0:
                    first = (out.token_ids, again.token_ids, logprob_gap(out, again))
                self.forget()
            rows[str(length)] = {
                "cold_ms": [round(1e3 * s, 1) for s in cold],
                "again_ms": [round(1e3 * s, 1) for s in hits],
                "cached_tokens": cached,
                "same_tokens": list(first[0]) == list(first[1]),
                "logprob_gap": first[2],
            }
        return rows

    def many(self, requests: int = 24, length: int = 8192) -> dict[str, Any]:
        prompts = [prompt(length + 1, 5000 + i) for i in range(requests)]
        start = time.perf_counter()
        self.llm.generate(prompts, self.one, use_tqdm=False)
        cold = time.perf_counter() - start
        if self.name != "recompute":
            # The disk takes less than the engine makes: store what was dropped, at its pace.
            for each in prompts:
                self.forget()
                self.llm.generate([each], self.one, use_tqdm=False)
                self.settle(4)
        rates, cached = [], []
        for _ in range(3):
            self.forget()
            start = time.perf_counter()
            outputs = self.llm.generate(prompts, self.one, use_tqdm=False)
            rates.append(requests * length / (time.perf_counter() - start))
            cached.append(sum(o.num_cached_tokens or 0 for o in outputs))
        return {
            "cold_tokens_per_s": round(requests * length / cold),
            "again_tokens_per_s": [round(rate) for rate in rates],
            "cached_tokens": cached,
            "tokens": requests * length,
        }

    def damaged(self, length: int = 32768) -> dict[str, Any]:
        """One chunk file in five cut short: same tokens, same logprobs."""
        _, _, right = self.ttft(length + 1, 77)
        self.settle()
        files = sorted(self.root.rglob("*.kv"), key=lambda p: p.stat().st_mtime)[-length // 256 :]
        for path in files[::5]:
            os.truncate(path, path.stat().st_size // 2)
        self.forget()
        _, tokens, out = self.ttft(length + 1, 77)
        return {
            "files": len(files),
            "damaged": len(files[::5]),
            "cached_tokens": tokens,
            "same_tokens": list(out.token_ids) == list(right.token_ids),
            "logprob_gap": logprob_gap(out, right),
        }


def logprob_gap(left: Any, right: Any) -> float:
    """Largest difference of the chosen tokens' logprobs."""
    pairs = zip(left.logprobs, right.logprobs, left.token_ids, strict=True)
    return max(abs(a[t].logprob - b[t].logprob) if t in b else 9.0 for a, b, t in pairs)


def inter_token(arm: Arm) -> dict[str, Any]:
    """p99 of the time between steps of running requests while others store and load."""
    from vllm import SamplingParams

    engine = arm.llm.llm_engine
    many = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    stored = [prompt(4097, 31_000 + i) for i in range(16)]
    arm.llm.generate(stored, arm.one, use_tqdm=False)
    arm.settle()
    result = {}
    for phase in ("quiet", "loading"):
        arm.forget()
        for i in range(16):
            engine.add_request(f"{phase}-{i}", prompt(256, 40_000 + i), many)
        gaps: list[float] = []
        last = time.perf_counter()
        step = fed = 0
        while engine.has_unfinished_requests():
            if phase == "loading" and step > 40 and step % 10 == 0 and fed < len(stored):
                engine.add_request(f"load-{fed}", stored[fed], arm.one)
                fed += 1
            outputs = engine.step()
            if any(o.request_id.startswith(phase) for o in outputs):
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
            step += 1
        gaps = sorted(gaps[40:])
        result[phase] = {
            "p50_ms": round(1e3 * statistics.median(gaps), 2),
            "p99_ms": round(1e3 * gaps[int(0.99 * (len(gaps) - 1))], 2),
            "loads": fed,
        }
    result["p99_ratio"] = round(result["loading"]["p99_ms"] / result["quiet"]["p99_ms"], 3)
    return result


def child(args: argparse.Namespace) -> None:
    """Measure one arm; what is known is written after every phase."""
    started = time.perf_counter()
    arm = Arm(args.arm, str(args.directory), args.model)
    result: dict[str, Any] = {"start_s": round(time.perf_counter() - started, 1)}
    arm.ttft(4096, 123_456)  # kernels compiled, pools filled
    phases = {
        "single": lambda: arm.single(args.repeats),
        "damaged": arm.damaged if args.arm == "kvshelf" else None,
        "inter_token": (lambda: inter_token(arm)) if not args.arm.endswith("tier") else None,
        "many": arm.many,
    }
    for name, phase in phases.items():
        if phase is None or name not in args.phases.split(","):
            continue
        try:
            result[name] = phase()
        except Exception as error:  # the arm's other figures are kept
            result[name] = repr(error)
        args.out.write_text(json.dumps(result))


def write_model(directory: Path) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(MODEL))
    return str(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--arms", default="recompute,fs tier,kvshelf")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm")
    parser.add_argument("--model")
    parser.add_argument("--phases", default="single,damaged,inter_token,many")
    parser.add_argument("--arm-seconds", type=int, default=240)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.arm:
        child(args)
        return
    model = write_model(args.directory / "model")
    results: dict[str, Any] = {}
    for arm in args.arms.split(","):
        root = args.directory / arm.replace(" ", "-")
        root.mkdir(exist_ok=True)
        out = args.directory / f"{arm.replace(' ', '-')}.json"
        command = [sys.executable, __file__, str(root), "--arm", arm, "--model", model]
        command += ["--repeats", str(args.repeats), "--out", str(out), "--phases", args.phases]
        with (args.out.parent / f"{arm.replace(' ', '-')}.log").open("w") as log:
            # A session of its own: the engine's processes end with it, and free the GPU.
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            timer = threading.Timer(args.arm_seconds, os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            code = process.wait()
            timer.cancel()
        results[arm] = json.loads(out.read_text()) if out.exists() else {"exit": code}
        print(arm, json.dumps(results[arm]), flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        subprocess.run(["rm", "-rf", str(root)], check=False)


if __name__ == "__main__":
    main()
