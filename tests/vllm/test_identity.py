"""Each thing that can change a chunk's bytes changes the identity; where it lies does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402

from kvshelf.disk.namespace import Identity, diff  # noqa: E402
from kvshelf.disk.reasons import explain  # noqa: E402
from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.vllm.identity import build_identity  # noqa: E402

from .configs import kv_cache_config, save_weights, vllm_config  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    directory = tmp_path_factory.mktemp("one") / "tiny"
    return build_identity(vllm_config(directory), kv_cache_config(), "")


def changed_fields(left: Identity, right: Identity) -> set[str]:
    return {difference.field.split(".")[0] for difference in diff(left, right)}


def identity(tmp_path: Path, salt: str = "", kv: Any = None, **kwargs: Any) -> Identity:
    directory = tmp_path / "tiny"
    return build_identity(vllm_config(directory, **kwargs), kv or kv_cache_config(), salt)


def test_the_place_of_the_model_and_of_the_shelf_does_not_count(
    base: Identity, tmp_path: Path
) -> None:
    assert identity(tmp_path).digest == base.digest


@pytest.mark.parametrize(
    ("kwargs", "fields"),
    [
        ({"hf": {"rope_theta": 500000.0}}, {"hf_config"}),
        ({"hf": {"num_hidden_layers": 6}}, {"hf_config"}),
        ({"hf": {"head_dim": 64}}, {"hf_config"}),
        ({"hf_overrides": {"rms_norm_eps": 1e-3}}, {"hf_config"}),
        ({"dtype": "bfloat16"}, {"model_config"}),
        ({"kv_cache_dtype": "fp8_e5m2"}, {"cache_dtype"}),
        ({"prefix_caching_hash_algo": "sha256_cbor"}, {"hash"}),
        ({"load_format": "dummy"}, {"load"}),
        ({"tensor_parallel_size": 2}, {"parallel"}),
        ({"salt": "team-a"}, {"salt"}),
        ({"enforce_eager": False}, {"compilation_config"}),
        ({"attention_backend": "TRITON_ATTN"}, {"attention_config"}),
        ({"additional_config": {"kernel": "another"}}, {"additional_config"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_each_field_alone_separates(
    base: Identity, tmp_path: Path, kwargs: dict[str, Any], fields: set[str]
) -> None:
    other = identity(tmp_path, **kwargs)
    assert other.digest != base.digest
    assert fields <= changed_fields(base, other)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"gpu_memory_utilization": 0.5},
        {"max_num_seqs": 3},
        {"max_num_batched_tokens": 4096},
        {"max_model_len": 1024},
        {"seed": 7},
        {"served_model_name": "another"},
        {"max_logprobs": 3},
        {"async_scheduling": False},
        {"use_tqdm_on_load": False},
        {"revision": "another"},
        {"disable_log_stats": True},
        {"kv_cache_memory_bytes": 1 << 30},
        {"generation_config": "vllm"},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_what_merely_sizes_or_serves_does_not_count(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    save_weights(tmp_path / "tiny")
    assert identity(tmp_path, **kwargs).digest == identity(tmp_path).digest


@pytest.mark.parametrize("load_format", ["safetensors", "hf"])
def test_two_ways_to_load_the_same_files_share(tmp_path: Path, load_format: str) -> None:
    save_weights(tmp_path / "tiny")
    assert identity(tmp_path, load_format=load_format).digest == identity(tmp_path).digest


def test_a_salt_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="identity_salt=7"):
        identity(tmp_path, salt=7)  # type: ignore[arg-type]


def test_weights_separate(base: Identity, tmp_path: Path) -> None:
    save_weights(tmp_path / "tiny")
    first = identity(tmp_path)
    save_weights(tmp_path / "tiny", 2.0)
    assert changed_fields(first, identity(tmp_path)) == {"weights"}
    assert changed_fields(base, first) == {"weights", "load"}


@pytest.mark.parametrize(
    "kv",
    [{"groups": 2}, {"dtype": torch.bfloat16}, {"heads": 2}],
    ids=["groups", "cache dtype", "kv heads"],
)
def test_the_shape_of_the_cache_separates(
    base: Identity, tmp_path: Path, kv: dict[str, Any]
) -> None:
    assert "groups" in changed_fields(base, identity(tmp_path, kv=kv_cache_config(**kv)))


def test_chunk_size_separates(base: Identity, tmp_path: Path) -> None:
    config = vllm_config(tmp_path / "tiny")
    config.kv_transfer_config.kv_connector_extra_config["block_size"] = 128
    other = build_identity(config, kv_cache_config(), "")
    assert changed_fields(base, other) == {"chunk"}


def test_the_identity_can_be_written_as_json(base: Identity) -> None:
    assert Identity.from_json(base.to_json()).digest == base.digest


def test_diff_explains_every_field(base: Identity) -> None:
    reasons = explain(diff(base, Identity({"model": "another"})))
    assert {reason.difference.field for reason in reasons} == set(base.fields)
    assert all(reason.meaning for reason in reasons)
