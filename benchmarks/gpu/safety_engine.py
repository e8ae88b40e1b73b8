"""What the cases of ``safety.py`` share: a model, engines, answers and how far they are apart.

Answers of two engines differ by rounding, since batches have other shapes. So the distance that
counts as wrong is measured first (``calibrate``): above what rounding does, below what one block of
other tokens does.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safety_workers

CPU = os.environ.get("SAFETY_CPU") == "1"  # to try this file where there is no GPU
BLOCK_TOKENS = 32 if CPU else 16
CHUNK_TOKENS = 64 if CPU else 256
CHUNKS = 6
WHOLE = CHUNKS * CHUNK_TOKENS  # of most prompts, which have a token more
MAX_TOKENS = 1024 if CPU else 8192
VOCABULARY = 2048
SHAPE: dict[str, Any] = {
    "hidden_size": 256 if CPU else 1024,
    "intermediate_size": 512 if CPU else 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32 if CPU else 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_TOKENS,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ANSWER_TOKENS = 8
WRONG = 9.0  # distance of answers of which one has a token that the other does not think of

Prompt = list[int]
Answer = dict[str, Any]  # tokens, rows (token -> logprob, a row a token), cached


def make_model(folder: Path, seed: int, dtype: str) -> None:
    """Weights wider than a trained model's, so that an answer depends on what KV holds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    gain = 1 / math.sqrt(SHAPE["hidden_size"])
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() == 2:
                scale = 2.0 if "q_proj" in name or "k_proj" in name else 1.28
                weight.normal_(0.0, scale * gain, generator=generator)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def make_prompt(seed: int, tokens: int = CHUNKS * CHUNK_TOKENS + 1) -> Prompt:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCABULARY) for _ in range(tokens)]


def prompts_of(name: str) -> list[Prompt]:
    """The prompts of a case; the same in every process."""
    count, first, tokens = {
        "weights": (4, 100, CHUNKS * CHUNK_TOKENS + 1),
        "sync": (4, 200, CHUNKS * CHUNK_TOKENS + 1),
        "adapters": (3, 300, CHUNKS * CHUNK_TOKENS + 1),
        "multi": (8 if CPU else 40, 400, 4 * CHUNK_TOKENS + 9),
        "sleep": (12, 500, 12 * CHUNK_TOKENS + 1),
    }[name]
    return [make_prompt(first + i, tokens) for i in range(count)]


def shelf_config(shelf: Path, **extra: Any) -> dict[str, Any]:
    shelf.mkdir(parents=True, exist_ok=True)
    return {
        "kv_connector": "KvshelfConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "shared_storage_path": str(shelf),
            "block_size": CHUNK_TOKENS,
            "admission": "always",
            **extra,
        },
    }


def distance(answer: Answer, truth: Answer) -> float:
    """The largest difference of a logprob, up to the first other token."""
    worst = 0.0
    pairs = zip(answer["tokens"], truth["tokens"], answer["rows"], truth["rows"], strict=True)
    for mine, right, my_row, right_row in pairs:
        if str(mine) not in right_row or str(right) not in my_row:
            return WRONG
        both = my_row.keys() & right_row.keys()
        worst = max(worst, *(abs(my_row[token] - right_row[token]) for token in both))
        if mine != right:
            break
    return worst


class Engine:
    """One vLLM engine, started by the constructor.

    Args:
        setup: what ``prepare`` wrote: the data type and the attention backend.
    """

    def __init__(
        self,
        model: Path,
        setup: dict[str, Any],
        transfer: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        from vllm import LLM

        given: dict[str, Any] = {
            "model": str(model),
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "dtype": setup["dtype"],
            "block_size": BLOCK_TOKENS,
            "max_model_len": MAX_TOKENS,
            "max_num_batched_tokens": MAX_TOKENS,
            "gpu_memory_utilization": 0.1,
            "disable_log_stats": False,
            "seed": 0,
        }
        if transfer is not None:
            given["kv_transfer_config"] = transfer
        if not CPU:
            given["kv_cache_memory_bytes"] = 3 << 30
            if setup.get("backend"):
                given["attention_backend"] = setup["backend"]
        start = time.perf_counter()
        self.llm: Any = LLM(**{**given, **arguments})
        self.start_seconds = time.perf_counter() - start
        self._names = 0

    def sampling(self, tokens: int = ANSWER_TOKENS) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0,
            max_tokens=tokens,
            min_tokens=tokens,
            ignore_eos=True,
            logprobs=8,
            detokenize=False,
        )

    def ask(
        self, prompts: Sequence[Prompt], *, at_once: bool = False, adapter: Any = None
    ) -> list[Answer]:
        batches = [list(prompts)] if at_once else [[each] for each in prompts]
        answers = []
        for batch in batches:
            given = [{"prompt_token_ids": each} for each in batch]
            for output in self.llm.generate(
                given, self.sampling(), use_tqdm=False, lora_request=adapter
            ):
                answers.append(answer_of(output))  # noqa: PERF401 - as it comes
        return answers

    def send(self, prompts: Sequence[Prompt], tokens: int = ANSWER_TOKENS) -> None:
        """Add requests and wait for none: the engine's process runs them."""
        for prompt in prompts:
            self._names += 1
            self.llm.llm_engine.add_request(
                f"sent-{self._names}", {"prompt_token_ids": prompt}, self.sampling(tokens)
            )

    def abort(self) -> None:
        """Hang up on all that was sent."""
        self.llm.llm_engine.abort_request([f"sent-{i + 1}" for i in range(self._names)])

    def collect(self, seconds: float = 60) -> dict[int, Answer]:
        """The answers of what was sent, by the order of sending over all; aborted ones lack."""
        answers = {}
        until = time.monotonic() + seconds
        while self.llm.llm_engine.has_unfinished_requests():
            if time.monotonic() > until:
                raise TimeoutError("requests that were sent do not end")
            for output in self.llm.llm_engine.step():
                whole = output.finished and len(output.outputs[0].token_ids) == ANSWER_TOKENS
                if whole:
                    answers[int(output.request_id.split("-")[1])] = answer_of(output)
        return answers

    def reset(self, *, connector: bool = False) -> None:
        until = time.monotonic() + 30
        while not self.llm.reset_prefix_cache(reset_connector=connector):
            if time.monotonic() > until:
                raise TimeoutError("the prefix cache could not be reset")
            # Blocks of stores are let go of with the steps that report them.
            self.llm.generate([{"prompt_token_ids": [7] * 9}], self.sampling(1), use_tqdm=False)

    def rpc(self, what: str | Callable[..., Any], **arguments: Any) -> list[Any]:
        answers: list[Any] = self.llm.collective_rpc(what, kwargs=arguments)
        return answers

    def metrics(self, prefix: str = "kvshelf:") -> dict[str, float]:
        from prometheus_client import REGISTRY

        found: dict[str, float] = {}
        for family in REGISTRY.collect():
            for sample in family.samples:
                if sample.name.startswith(prefix) and not sample.name.endswith("_created"):
                    labels = {
                        k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")
                    }
                    name = sample.name + (json.dumps(labels, sort_keys=True) if labels else "")
                    if sample.value and not name.endswith("_bucket") and '"le"' not in name:
                        found[name] = sample.value
        return found

    def stop(self) -> None:
        self.llm.llm_engine.engine_core.shutdown(timeout=30)


def answer_of(output: Any) -> Answer:
    (only,) = output.outputs
    rows = [{str(token): each.logprob for token, each in row.items()} for row in only.logprobs]
    cached = output.num_cached_tokens or 0
    return {"tokens": list(only.token_ids), "rows": rows, "cached": cached}


def chunk_files(shelf: Path) -> list[Path]:
    return sorted(shelf.rglob("*.kv"))


def await_files(shelf: Path, count: int, seconds: float = 60) -> int:
    """How many chunk files there are, once there are ``count``: stores are written behind."""
    until = time.monotonic() + seconds
    while len(chunk_files(shelf)) < count and time.monotonic() < until:
        time.sleep(0.05)
    return len(chunk_files(shelf))


class Record:
    """What a case found: one row a step, written to its file as it comes."""

    def __init__(self, out: Path, tolerance: float) -> None:
        self.out, self.tolerance = out, tolerance
        self.result: dict[str, Any] = {"ok": True, "wrong": 0, "answers": 0, "steps": []}

    def check(
        self,
        step: str,
        answers: Sequence[Answer],
        truth: Sequence[Answer],
        cached: int | Sequence[int] | None = None,
    ) -> None:
        """Compare answers; ``cached``: tokens that each must have had from a cache."""
        apart = [distance(a, t) for a, t in zip(answers, truth, strict=True)]
        wrong = sum(each > self.tolerance for each in apart)
        found = [each["cached"] for each in answers]
        row: dict[str, Any] = {"step": step, "answers": len(apart), "wrong": wrong}
        row |= {"farthest": round(max(apart, default=0.0), 4), "cached": _short(found)}
        self.result["wrong"] += wrong
        self.result["answers"] += len(apart)
        if cached is not None:
            wanted = [cached] * len(found) if isinstance(cached, int) else list(cached)
            if found != wanted:
                row["expected_cached"] = _short(wanted)
        self.note(row, ok=not wrong and "expected_cached" not in row)

    def expect(self, step: str, *, ok: bool, **facts: Any) -> None:
        self.note({"step": step, **facts}, ok=ok)

    def note(self, row: dict[str, Any], *, ok: bool = True) -> None:
        self.result["ok"] &= ok
        self.result["steps"].append(row if ok else {**row, "FAULT": True})
        print("STEP", json.dumps(self.result["steps"][-1]), flush=True)
        self.out.write_text(json.dumps(self.result))

    def fact(self, **facts: Any) -> None:
        self.result.update(facts)
        print("FACT", json.dumps(facts), flush=True)
        self.out.write_text(json.dumps(self.result))


def _short(values: list[int]) -> Any:
    """One number for all, if they are equal."""
    return values[0] if len(set(values)) == 1 else values


def calibrate(engine: Engine, prompts: Iterable[Prompt]) -> dict[str, float]:
    """How far rounding moves answers of an engine without kvshelf, and how far other KV does."""
    prompts = list(prompts)
    engine.reset()
    alone = engine.ask(prompts)
    again = engine.ask(prompts)  # all but the last block from vLLM's own prefix cache
    engine.reset()
    batch = engine.ask(prompts, at_once=True)
    other = []
    for i, prompt in enumerate(prompts):
        changed = list(prompt)
        middle = len(prompt) // 2 // BLOCK_TOKENS * BLOCK_TOKENS
        changed[middle : middle + BLOCK_TOKENS] = make_prompt(9000 + i, BLOCK_TOKENS)
        other.append(changed)
    moved = [distance(a, b) for a, b in zip(engine.ask(other), alone, strict=True)]
    rounding = max(
        distance(a, b) for each in (again, batch) for a, b in zip(each, alone, strict=True)
    )
    return {
        "rounding": rounding,
        "one_block_least": min(moved),
        "one_block_median": sorted(moved)[len(moved) // 2],
    }


@dataclass
class Site:
    """The folder of a run: models, the right answers, and this case's shelf."""

    folder: Path
    case: str
    record: Record

    @property
    def setup(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "setup.json").read_text())
        return found

    @property
    def shelf(self) -> Path:
        return self.folder / f"shelf-{self.case}"

    def model(self, name: str = "w1") -> Path:
        return self.folder / self.setup["dtype"] / name

    def truth(self, name: str, prompts: str) -> list[Answer]:
        rows: dict[str, list[Answer]] = json.loads((self.folder / f"truth-{name}.json").read_text())
        return rows[prompts]

    def engine(self, transfer: dict[str, Any] | None = None, **arguments: Any) -> Engine:
        transfer = shelf_config(self.shelf) if transfer is None else transfer
        engine = Engine(self.model(), self.setup, transfer, **arguments)
        self.record.fact(about=engine.rpc(safety_workers.about)[0])
        return engine


def scrub(shelf: Path) -> dict[str, Any]:
    """``kvshelf scrub``: its exit status, and the end of what it says."""
    command = [sys.executable, "-m", "kvshelf.cli", "scrub", str(shelf), "--from-start"]
    command += ["--max-bytes-per-second", "0", "--max-files-per-second", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return {"exit": done.returncode, "says": (done.stdout + done.stderr)[-400:]}
