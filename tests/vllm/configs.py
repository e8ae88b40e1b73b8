"""Real vLLM configurations of a tiny model, made without starting an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)


def save_config(directory: Path, **overrides: Any) -> None:
    fields: dict[str, Any] = {
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "architectures": ["LlamaForCausalLM"],
    }
    LlamaConfig(**{**fields, **overrides}).save_pretrained(directory)


def save_weights(directory: Path, value: float = 1.0) -> None:
    """A real weight file: transformers asks it for its types."""
    directory.mkdir(exist_ok=True)
    save_file({"a": torch.full((4, 4), value)}, directory / "model.safetensors")


def vllm_config(directory: Path, *, hf: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """VllmConfig of a model whose configuration (changed by ``hf``) is saved in ``directory``."""
    save_config(directory, **(hf or {}))
    arguments: dict[str, Any] = {
        "model": str(directory),
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "dtype": "float32",
        "block_size": 32,
        "kv_transfer_config": {
            "kv_connector": "KvshelfConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(directory), "block_size": 64},
        },
    }
    return EngineArgs(**{**arguments, **overrides}).create_engine_config()


def kv_cache_config(*, groups: int = 1, dtype: torch.dtype = torch.float32, heads: int = 4) -> Any:
    """One full-attention group of four layers, or further sliding-window groups beside it."""
    common = {"block_size": 32, "num_kv_heads": heads, "head_size": 32, "dtype": dtype}
    specs = [FullAttentionSpec(**common)] + [
        SlidingWindowSpec(**common, sliding_window=64) for _ in range(groups - 1)
    ]
    return KVCacheConfig(
        num_blocks=16,
        kv_cache_tensors=[],
        kv_cache_groups=[
            KVCacheGroupSpec([f"layers.{g}.{i}.attn" for i in range(4)], spec)
            for g, spec in enumerate(specs)
        ],
    )
