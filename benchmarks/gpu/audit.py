"""How far rounding moves KV on a GPU, and what an audit costs: the figures behind its tolerances.

A Llama of 1 B parameters with random weights is made. One engine stores prompts that it computes at
once; others audit all hits, computing in parts and batches. Printed are distances
(``kvshelf.vllm.worker.compare``) of the worst window of each chunk, beside those of other content.

    python benchmarks/gpu/audit.py DIR [--dtype bfloat16] [--cache-dtype auto]

Needs vLLM, anycrc and this repository: ``tests.harness`` reads the chunk files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_TOKENS, CHUNKS, PROMPTS, BLOCK_TOKENS = 256, 8, 8, 16
LAYERS, HEADS, HEAD_SIZE = 16, 8, 64
SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD_SIZE,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
ARMS = {
    "store": {"max_num_batched_tokens": 8192},
    "parts of 777 tokens": {"max_num_batched_tokens": 777, "max_num_seqs": 1},
    "8 requests, 512 tokens a step": {"max_num_batched_tokens": 512},
}


def make_model(folder: Path, sharpness: float) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:  # attention that chooses
                weight.mul_(sharpness)
    model.save_pretrained(folder)


def prompts() -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(3)
    length = CHUNK_TOKENS * CHUNKS + 1
    return [{"prompt_token_ids": rng.integers(10, 31000, length).tolist()} for _ in range(PROMPTS)]


def run_arm(folder: Path, arm: str, dtype: str, cache_dtype: str) -> None:
    """One engine in this process; prints a line of JSON."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from kvshelf.vllm.worker import auditor
    from kvshelf.vllm.worker.compare import distance

    distances: list[list[float]] = []
    takes: list[float] = []
    compare, take = auditor.compare, auditor.Auditor.take

    def noting(*args: Any) -> Any:
        computed, stored = args[0], args[1]
        parts = [each.reshape(len(each), LAYERS, -1) for each in (computed, stored)]
        kind = args[3][0][0].kind
        distances.append([distance(*(p[:, i] for p in parts), kind) for i in range(LAYERS)])
        return compare(*args)

    def timed(self: Any, job_id: int, plan: Any, audited: Any, **known: bool) -> Any:
        start = time.perf_counter()
        rest = take(self, job_id, plan, audited, **known)
        if audited:
            takes.append((time.perf_counter() - start) / len(audited))
        return rest

    auditor.compare, auditor.Auditor.take = noting, timed  # type: ignore[method-assign,assignment]
    extra = {"shared_storage_path": str(folder / "shelf"), "block_size": CHUNK_TOKENS}
    extra |= {"admission": "always", "audit_memory_mib": 1024}
    if arm != "store":
        extra |= {"audit_percent": 100, "audit_tolerance": 1.0, "audit_failures_max": 10**6}
    llm = LLM(
        model=str(folder / "model"),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype=dtype,
        kv_cache_dtype=cache_dtype,
        block_size=BLOCK_TOKENS,
        gpu_memory_utilization=0.3,
        max_model_len=4096,
        kv_transfer_config={
            "kv_connector": "KvshelfConnector",
            "kv_connector_module_path": "kvshelf.vllm.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        },
        **ARMS[arm],
    )
    one = SamplingParams(temperature=0, max_tokens=1)
    cached = []
    for batch in [prompts()] if "requests" in arm else [[each] for each in prompts()]:
        cached += [out.num_cached_tokens for out in llm.generate(batch, one, use_tqdm=False)]
    deadline = time.monotonic() + 60
    wanted = 0 if arm == "store" else CHUNKS * PROMPTS
    while len(distances) < wanted and time.monotonic() < deadline:
        llm.generate([{"prompt_token_ids": [7] * 20}], one, use_tqdm=False)
        time.sleep(0.2)
    time.sleep(3 if arm == "store" else 0)
    result = {"arm": arm, "cached": cached, "distances": distances, "takes": takes}
    print("RESULT " + json.dumps(result), flush=True)
    llm.llm_engine.engine_core.shutdown()
    os._exit(0)


def payloads(shelf: Path) -> list[np.ndarray[Any, Any]]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.harness.codec import decode

    found = []
    for path in sorted(shelf.glob("*/r*/*/*.kv"))[:24]:
        data = path.read_bytes()
        header = decode(data)
        payload = np.frombuffer(data[4096:][: header.payload_bytes], np.uint8)
        found.append(payload.reshape(header.block_count, LAYERS, -1))
    return found


def other_content(shelf: Path, kind: Any) -> dict[str, float]:
    """The least distance of chunks of other tokens, and of chunks of which one token is another."""
    from kvshelf.vllm.worker.compare import distance

    chunks = payloads(shelf)
    whole, one, layer0 = [], [], []
    for right, other in itertools.pairwise(chunks):
        each = [distance(right[:, i], other[:, i], kind) for i in range(LAYERS)]
        whole.append(max(each))
        layer0.append(each[0])
        blocks = right.shape[0]
        slots = right.reshape(blocks, LAYERS, -1, BLOCK_TOKENS, HEADS, HEAD_SIZE).copy()
        slots[3, :, :, 5] = other.reshape(slots.shape)[3, :, :, 5]
        wrong = slots.reshape(blocks, LAYERS, -1)
        one.append(max(distance(right[:, i], wrong[:, i], kind) for i in range(LAYERS)))
    return {"other chunk": min(whole), "first layer": min(layer0), "one token": min(one)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-dtype", default="auto")
    parser.add_argument("--sharpness", type=float, default=1.0, help="scale of queries and keys")
    parser.add_argument("--arm", choices=list(ARMS))
    args = parser.parse_args()
    if args.arm:
        run_arm(args.dir, args.arm, args.dtype, args.cache_dtype)
        return
    args.dir.mkdir(parents=True, exist_ok=True)
    if not (args.dir / "model").exists():
        make_model(args.dir / "model", args.sharpness)
    for arm in ARMS:
        command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            print(f"{arm} failed\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
            continue
        found = json.loads(lines[0].removeprefix("RESULT "))
        layers = np.array(found["distances"])
        values = sorted(layers.max(axis=1).tolist()) if len(layers) else []
        print(f"{args.dtype}, {args.cache_dtype} KV, {arm}: cached {sum(found['cached'])}", end="")
        if values:
            print(
                f"; {len(values)} chunks, equal {values.count(0.0)}, distance median "
                f"{statistics.median(values):.3g}, worst {values[-1]:.3g}; "
                f"{1e3 * statistics.median(found['takes']):.2f} ms a chunk on the model's thread",
                end="",
            )
            print("; worst by layer", np.round(layers.max(axis=0), 3).tolist(), end="")
        print(flush=True)
    from kvshelf.vllm.worker.compare import Kind

    kind = Kind.FLOAT8_E4M3 if args.cache_dtype.startswith("fp8") else Kind(args.dtype)
    print(f"least distance of other content: {other_content(args.dir / 'shelf', kind)}")


if __name__ == "__main__":
    main()
