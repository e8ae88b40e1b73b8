"""What kinds of numbers the pages of each KV cache group hold, as far as audits must know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvshelf.vllm.worker.compare import Kind, Section

# Where the connector leaves it for the spec, which sees vLLM's OffloadingConfig only.
PAGES_KEY = "kvshelf.pages"

_KINDS = {
    torch.float32: Kind.FLOAT32,
    torch.float16: Kind.FLOAT16,
    torch.bfloat16: Kind.BFLOAT16,
    torch.float8_e4m3fn: Kind.FLOAT8_E4M3,
    torch.float8_e5m2: Kind.FLOAT8_E5M2,
}
# vLLM keeps 8-bit floats as bytes and says in words which they are.
_WORDS = {
    "fp8": Kind.FLOAT8_E4M3,
    "fp8_e4m3": Kind.FLOAT8_E4M3,
    "fp8_e5m2": Kind.FLOAT8_E5M2,
}
# KVQuantMode's of which every byte is a value: all others have scales between them.
_PLAIN_MODES = frozenset({"NONE", "FP8_PER_TENSOR"})

Sections = tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class PageKinds:
    """
    Attributes:
        layers: per group and layer: bytes of its page, padding included, and what is in it.
        model: in which numbers the model computes; None: in others than ``Kind`` has.
    """

    layers: list[list[tuple[int, Sections]]]
    model: Kind | None


def page_kinds(vllm_config: Any, kv_cache_config: Any) -> PageKinds:
    """From vLLM's VllmConfig and KVCacheConfig as given to the connector."""
    cache_dtype = str(vllm_config.cache_config.cache_dtype)
    layers = []
    for group in kv_cache_config.kv_cache_groups:
        specs = getattr(group.kv_cache_spec, "kv_cache_specs", None) or {}
        each = [specs.get(name, group.kv_cache_spec) for name in group.layer_names]
        layers.append([(int(s.page_size_bytes), _sections(s, cache_dtype)) for s in each])
    return PageKinds(layers, _KINDS.get(vllm_config.model_config.dtype))


def page_sections(
    layers: Sequence[tuple[int, Sections]], page_bytes: Sequence[int]
) -> list[Sections] | None:
    """What is in each page that vLLM offloads of a group; None if that cannot be told.

    A page is a layer's, or several layers' one after the other. A page that also holds what no
    layer of the group has written (other groups' bytes, gaps) cannot be compared.

    Args:
        layers: the group's, from ``page_kinds``.
        page_bytes: of the pages, without padding.
    """
    if len(layers) == len(page_bytes):
        return [sections for _, sections in layers]
    kinds = {section.kind for _, sections in layers for section in sections}
    if len(kinds) == 1 and sum(size for size, _ in layers) == sum(page_bytes):
        return [(Section(kinds.pop()),)] * len(page_bytes)
    return None


def _sections(spec: Any, cache_dtype: str) -> Sections:
    if hasattr(spec, "shapes") and hasattr(spec, "dtypes"):  # a state, one part after the other
        return tuple(
            Section(_KINDS.get(dtype, Kind.BYTES), math.prod(shape) * dtype.itemsize)
            for shape, dtype in zip(spec.shapes, spec.dtypes, strict=False)
        )
    mode = getattr(getattr(spec, "kv_quant_mode", None), "name", "NONE")
    word = str(getattr(spec, "cache_dtype_str", None) or cache_dtype)
    if mode not in _PLAIN_MODES or "mla" in word:
        return (Section(Kind.BYTES),)
    kind = _KINDS.get(getattr(spec, "dtype", None))
    if kind is None:
        kind = _WORDS.get(word, Kind.BYTES)
    return (Section(kind),)
