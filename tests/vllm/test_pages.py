"""What pages hold, from vLLM's own specifications of a KV cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVQuantMode,
    MambaSpec,
    MLAAttentionSpec,
)

from kvshelf.vllm.worker.compare import Kind, Section  # noqa: E402
from kvshelf.vllm.worker.pages import page_kinds, page_sections  # noqa: E402

from .configs import kv_cache_config  # noqa: E402

BYTES = (Section(Kind.BYTES),)


def kinds(cache: Any, cache_dtype: str = "auto", dtype: torch.dtype = torch.bfloat16) -> Any:
    config = SimpleNamespace(
        cache_config=SimpleNamespace(cache_dtype=cache_dtype),
        model_config=SimpleNamespace(dtype=dtype),
    )
    return page_kinds(config, cache)


def of_spec(spec: Any, cache_dtype: str = "auto") -> Any:
    group = SimpleNamespace(kv_cache_spec=spec, layer_names=["layers.0"])
    (((_, sections),),) = kinds(SimpleNamespace(kv_cache_groups=[group]), cache_dtype).layers
    return sections


def attention(dtype: torch.dtype, **more: Any) -> Any:
    return FullAttentionSpec(block_size=16, num_kv_heads=4, head_size=32, dtype=dtype, **more)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, Kind.FLOAT32),
        (torch.float16, Kind.FLOAT16),
        (torch.bfloat16, Kind.BFLOAT16),
    ],
)
def test_groups_of_attention(dtype: torch.dtype, kind: Kind) -> None:
    made = kinds(kv_cache_config(groups=2, dtype=dtype), dtype=dtype)
    page_bytes = 2 * 32 * 4 * 32 * dtype.itemsize
    assert made.layers == [[(page_bytes, (Section(kind),))] * 4] * 2
    assert made.model is kind


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("fp8", Kind.FLOAT8_E4M3),
        ("fp8_e4m3", Kind.FLOAT8_E4M3),
        ("fp8_e5m2", Kind.FLOAT8_E5M2),
        ("int8", Kind.BYTES),
        ("something_new", Kind.BYTES),
    ],
)
def test_bytes_are_what_the_cache_dtype_says(word: str, kind: Kind) -> None:
    assert of_spec(attention(torch.uint8), word) == (Section(kind),)


def test_values_with_scales_between_them_are_bytes() -> None:
    spec = attention(torch.uint8, kv_quant_mode=KVQuantMode.FP8_PER_TOKEN_HEAD)
    assert of_spec(spec, "fp8") == BYTES
    spec = attention(torch.uint8, kv_quant_mode=KVQuantMode.FP8_PER_TENSOR)
    assert of_spec(spec, "fp8") == (Section(Kind.FLOAT8_E4M3),)
    latent = {"block_size": 64, "num_kv_heads": 1, "head_size": 576}
    spec = MLAAttentionSpec(**latent, dtype=torch.uint8, cache_dtype_str="fp8_ds_mla")
    assert of_spec(spec, "fp8_ds_mla") == BYTES
    spec = MLAAttentionSpec(**latent, dtype=torch.bfloat16)
    assert of_spec(spec) == (Section(Kind.BFLOAT16),)


def test_a_state_has_parts() -> None:
    spec = MambaSpec(
        block_size=16, shapes=((3, 8), (2, 4, 4)), dtypes=(torch.bfloat16, torch.float32)
    )
    assert of_spec(spec) == (Section(Kind.BFLOAT16, 48), Section(Kind.FLOAT32, 128))


LAYER = (64, (Section(Kind.FLOAT32),))


def test_a_page_a_layer() -> None:
    parts = (Section(Kind.BFLOAT16, 48), Section(Kind.FLOAT32, 128))
    assert page_sections([LAYER, (192, parts)], [64, 176]) == [LAYER[1], parts]


def test_a_page_of_all_layers() -> None:
    assert page_sections([LAYER] * 4, [256]) == [LAYER[1]]


@pytest.mark.parametrize("page_bytes", [512, 320])
def test_a_page_with_other_groups_bytes_or_gaps_is_not_compared(page_bytes: int) -> None:
    assert page_sections([LAYER] * 4, [page_bytes]) is None


def test_a_page_of_unlike_layers_is_not_compared() -> None:
    assert page_sections([LAYER, (64, BYTES)], [128]) is None
