"""Bytes of KV a token, from numbers and from config.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvshelf.plan.shape import DEFAULT_SHAPE, Shape, read_shape
from kvshelf.plan.trace import TraceError


def of_config(tmp_path: Path, **fields: Any) -> Shape:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    return read_shape(path)


LLAMA = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}


def test_llama_8b(tmp_path: Path) -> None:
    shape = of_config(tmp_path, **LLAMA)
    assert shape == DEFAULT_SHAPE
    assert shape.token_bytes == 131_072  # 64 KiB a page of 16 tokens a layer, 32 layers
    assert shape.chunk_bytes(256) == 33_554_432 + 4096  # the figure of benchmarks/results/gpu


def test_packed_chunks_take_three_quarters(tmp_path: Path) -> None:
    packed = replace(DEFAULT_SHAPE, packed=True)
    assert packed.token_bytes == DEFAULT_SHAPE.token_bytes
    assert packed.chunk_bytes(256) == 4096 + 32 * 193 * 4096  # 32 pieces of 1 MiB
    with pytest.raises(ValueError, match="dtype_bytes=1"):
        replace(packed, dtype_bytes=1)


def test_heads_and_their_size_have_defaults_and_other_names(tmp_path: Path) -> None:
    shape = of_config(tmp_path, n_layer=12, n_head=12, n_embd=768)
    assert (shape.layers, shape.kv_heads, shape.head_dim) == (12, 12, 64)
    assert of_config(tmp_path, **LLAMA, head_dim=256).head_dim == 256
    assert of_config(tmp_path, **LLAMA, head_dim=None).head_dim == 128


def test_a_model_that_sees_pictures_keeps_its_fields_one_level_down(tmp_path: Path) -> None:
    assert of_config(tmp_path, model_type="x", text_config=LLAMA) == DEFAULT_SHAPE


def test_linear_layers_keep_no_kv(tmp_path: Path) -> None:
    kinds = ["linear_attention"] * 24 + ["full_attention"] * 8
    assert of_config(tmp_path, **LLAMA, layer_types=kinds).layers == 8


def test_mla(tmp_path: Path) -> None:
    shape = of_config(tmp_path, **LLAMA, kv_lora_rank=512, qk_rope_head_dim=64)
    assert shape.mla and shape.token_bytes == 32 * 576 * 2
    # vLLM's page of 16 tokens: 18 KiB (benchmarks/results/gpu/README.md).
    assert Shape(1, 1, 576, mla=True).token_bytes * 16 == 18 << 10
    # Every rank keeps the same vector, in files of its own.
    assert Shape(32, 1, 576, mla=True, ranks=4).token_bytes == 4 * 32 * 576 * 2


def test_ranks_split_the_heads_until_there_are_none_left() -> None:
    assert Shape(32, 8, 128, ranks=8).token_bytes == Shape(32, 8, 128).token_bytes
    assert Shape(32, 8, 128, ranks=16).token_bytes == 2 * Shape(32, 8, 128).token_bytes
    assert Shape(32, 8, 128, ranks=2).chunk_bytes(16) == 2 * (4096 + (1 << 20))
    assert Shape(1, 1, 3, ranks=1).chunk_bytes(16) == 8192  # padded to whole pages
    with pytest.raises(ValueError, match="ranks=3: must divide kv_heads=8"):
        Shape(32, 8, 128, ranks=3)
    with pytest.raises(ValueError, match="layers=0: at least 1"):
        Shape(0, 8, 128)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "config.json:1: no JSON"),
        ("[]", "config.json: no config.json: allowed is one JSON object"),
        ("{}", "lacks num_hidden_layers or n_layer"),
        ('{"num_hidden_layers": 0}', "lacks num_hidden_layers"),
        ('{"num_hidden_layers": "32"}', "lacks num_hidden_layers"),
        ('{"num_hidden_layers": 2}', "lacks num_attention_heads"),
        ('{"num_hidden_layers": 2, "num_attention_heads": 2}', "lacks hidden_size"),
        ('{"num_hidden_layers": 2, "kv_lora_rank": 512}', "lacks qk_rope_head_dim"),
        ("\xff", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_bad_config_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(TraceError) as caught:
        read_shape(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_an_absent_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"config.json: No such file"):
        read_shape(tmp_path / "config.json")
