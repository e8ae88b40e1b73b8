"""Bytes of KV cache a token takes, from a model's shape. Pure but for reading one JSON file.

Source: vLLM ``vllm/transformers_utils/model_arch_config_convertor.py`` (names of the fields) and
``vllm/v1/kv_cache_interface.py`` (FullAttentionSpec, MLAAttentionSpec: page sizes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvshelf.plan.trace import TraceError

# Header page, and what a file's size is a multiple of (docs/format.md).
_PAGE_BYTES = 4096
# vLLM keeps 16 bits a number unless --kv-cache-dtype says otherwise, for float32 and quantised
# models too (ModelConfig, dtype="auto").
_DTYPE_BYTES = 2
# What a packed piece of 1 MiB of bf16 takes, with few escapes (docs/packing.md).
_PACKED_PAGES, _PLAIN_PAGES = 193, 256


@dataclass(frozen=True, slots=True)
class Shape:
    """
    Attributes:
        layers: that keep KV.
        kv_heads: of the whole model; 1 for MLA.
        head_dim: of a key; for MLA, kv_lora_rank + qk_rope_head_dim.
        dtype_bytes: bytes of a number in the KV cache.
        mla: one latent vector a token, kept by every rank, instead of keys and values.
        ranks: tensor-parallel size; each rank has files of its own.
        packed: whether engines store with ``compress`` on; for numbers of 2 bytes.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int = _DTYPE_BYTES
    mla: bool = False
    ranks: int = 1
    packed: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "kv_heads", "head_dim", "dtype_bytes", "ranks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        heads, ranks = self.kv_heads, self.ranks
        if not self.mla and heads % ranks and ranks % heads:
            raise ValueError(f"ranks={ranks}: must divide kv_heads={heads} or be a multiple of it")
        if self.packed and self.dtype_bytes != 2:
            raise ValueError(f"dtype_bytes={self.dtype_bytes}: only numbers of 2 bytes are packed")

    @property
    def token_bytes(self) -> int:
        """Of all ranks together: heads that several ranks need are kept by each."""
        if self.mla:
            return self.layers * self.head_dim * self.dtype_bytes * self.ranks
        return 2 * self.layers * max(self.kv_heads, self.ranks) * self.head_dim * self.dtype_bytes

    def chunk_bytes(self, tokens: int) -> int:
        """Of the files of a chunk, headers and padding included."""
        pages = -(-self.token_bytes // self.ranks * tokens // _PAGE_BYTES)
        if self.packed:
            pages = -(-pages * _PACKED_PAGES // _PLAIN_PAGES)
        return self.ranks * (1 + pages) * _PAGE_BYTES


# Llama-3.1-8B, the model of the figures in benchmarks/results/gpu.
DEFAULT_SHAPE = Shape(layers=32, kv_heads=8, head_dim=128)


def read_shape(path: Path) -> Shape:
    """The shape in a Hugging Face ``config.json``.

    Raises:
        TraceError: it cannot be read, or lacks what is needed.
    """
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise TraceError(str(path), 0, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise TraceError(str(path), getattr(error, "lineno", 0), f"no JSON: {error}") from error
    if not isinstance(config, Mapping):
        raise TraceError(str(path), 0, "no config.json: allowed is one JSON object")
    # Models that see pictures keep the language model's fields one level down.
    inner = config.get("text_config")
    fields = {**config, **inner} if isinstance(inner, Mapping) else config
    return _shape_of(str(path), fields)


def _shape_of(file: str, fields: Mapping[str, Any]) -> Shape:
    def number(*names: str, default: int | None = None) -> int:
        for name in names:
            value = fields.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if default is None:
            raise TraceError(file, 0, f"lacks {' or '.join(names)}: a number from 1 on is needed")
        return default

    layers = number("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if isinstance(fields.get("kv_lora_rank"), int):
        latent = number("kv_lora_rank") + number("qk_rope_head_dim")
        return Shape(layers, 1, latent, mla=True)
    kinds = fields.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        # Linear and Mamba layers keep a state of fixed size, not KV by token.
        layers = sum("attention" in str(k) and "linear" not in str(k) for k in kinds) or layers
    heads = number("num_attention_heads", "n_head", "num_heads")
    kv_heads = number("n_head_kv", "num_kv_heads", "num_key_value_heads", default=heads)
    head_dim = number("head_dim") if fields.get("head_dim") else 0
    if not head_dim:
        head_dim = number("hidden_size", "n_embd", "d_model") // heads
    return Shape(layers, kv_heads, head_dim)
