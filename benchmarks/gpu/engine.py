"""A real vLLM engine on a GPU, as the benchmarks beside this file start it.

Dummy weights, vLLM's settings as they are but for eager steps, and of kvshelf only the path. Shapes
by the size of a KV page: ``8b`` 64 KiB; ``one-head`` 8 KiB, a rank of eight; ``fp8`` 8 KiB; ``mla``
18 KiB.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

LLAMA = {
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
# The attention of DeepSeek-V2-Lite; all layers dense.
MLA = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "first_k_dense_replace": 27,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 131072,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
}
# Configuration, and arguments of the engine.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "8b": (LLAMA, {}),
    "one-head": ({**LLAMA, "num_key_value_heads": 1}, {}),
    "fp8": ({**LLAMA, "num_key_value_heads": 2}, {"kv_cache_dtype": "fp8"}),
    "mla": (MLA, {}),
}


def transfer_config(arm: str, root: str) -> dict[str, Any] | None:
    kind = arm.split("-", maxsplit=1)[0]
    if kind == "compute":
        return None
    if kind == "kvshelf":
        return {
            "kv_connector": "KvshelfConnector",
            "kv_connector_module_path": "kvshelf.vllm.connector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"shared_storage_path": root},
        }
    tier = {"type": "fs"}
    if kind == "tier":
        tier = {"type": "KvshelfTier", "module_path": "kvshelf.vllm.tier"}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec",
            "block_size": 256,
            "cpu_bytes_to_use": 24 << 30,
            "secondary_tiers": [{**tier, "root_dir": root}],
        },
    }


def prompt(length: int, seed: int) -> dict[str, list[int]]:
    rng = random.Random(seed)
    return {"prompt_token_ids": [rng.randrange(10, 31000) for _ in range(length)]}


def milliseconds(seconds: list[float]) -> list[float]:
    return [round(1e3 * each, 1) for each in seconds]


class Engine:
    """One engine in this process and what is measured on it."""

    def __init__(self, arm: str, shape: str, root: Path, model: str, **more: Any) -> None:
        from vllm import LLM, SamplingParams

        self.one = SamplingParams(temperature=0, max_tokens=1, logprobs=1)
        self.is_tier = not arm.startswith(("kvshelf", "compute"))
        self.root = root
        self.llm = LLM(
            model=model,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=70000,
            disable_log_stats=True,
            kv_transfer_config=transfer_config(arm, str(root)),
            **{"enforce_eager": True, **SHAPES[shape][1], **more},
        )

    def first_token(self, length: int, seed: int) -> tuple[float, int, Any]:
        """Seconds, tokens that were not computed, and the answer."""
        ids = prompt(length, seed)
        start = time.perf_counter()
        (output,) = self.llm.generate([ids], self.one, use_tqdm=False)
        seconds = time.perf_counter() - start
        return seconds, output.num_cached_tokens or 0, output.outputs[0]

    def stored_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def settle(self) -> int:
        """Run short steps until all is stored: reports come with steps. Bytes of all files."""
        before, same = -1, 0
        for i in range(120):
            self.first_token(32, 900_000 + i)
            time.sleep(0.1)
            now = self.stored_bytes()
            same = same + 1 if now == before else 0
            if same == 5:
                break
            before = now
        return before

    def forget(self) -> None:
        """Empty the GPU's cache, and the tier's in host memory: what is left is in the files."""
        if self.is_tier:
            self.llm.reset_prefix_cache(reset_connector=True)
        else:
            self.llm.reset_prefix_cache()


def logprob_gap(left: Any, right: Any) -> float:
    """Largest difference of the chosen tokens' logprobs."""
    pairs = zip(left.logprobs, right.logprobs, left.token_ids, strict=True)
    return max(abs(a[t].logprob - b[t].logprob) if t in b else 9.0 for a, b, t in pairs)


def write_model(directory: Path, shape: str = "8b") -> str:
    """A folder with the configuration of ``shape``, as vLLM's ``model``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(SHAPES[shape][0]))
    return str(directory)
