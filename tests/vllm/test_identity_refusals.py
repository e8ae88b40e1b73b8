"""Configurations under which KV cannot be shared end the start, in words that name the option."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.vllm import compat, patches  # noqa: E402
from kvshelf.vllm.identity import build_identity  # noqa: E402

from .configs import kv_cache_config, vllm_config  # noqa: E402


@pytest.fixture(autouse=True)
def no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "")  # so that what a test sets is taken back
    monkeypatch.delenv("PYTHONHASHSEED")


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return vllm_config(tmp_path / "tiny")


def build(config: Any) -> Any:
    return build_identity(config, kv_cache_config(), "")


def put(target: Any, name: str, value: Any) -> None:
    object.__setattr__(target, name, value)


def test_scales_from_the_first_batch_are_refused(config: Any) -> None:
    put(config.cache_config, "calculate_kv_scales", True)
    with pytest.raises(ConfigError, match="calculate_kv_scales"):
        build(config)


@pytest.mark.parametrize("scales", [None, "scales.json"])
def test_an_encoders_scales_from_earlier_requests_are_refused(
    config: Any, scales: str | None, tmp_path: Path
) -> None:
    path = scales and str(tmp_path / scales)
    if path:
        Path(path).write_text("{}")
    from vllm.config import MultiModalConfig

    encoder = MultiModalConfig()
    put(encoder, "mm_encoder_attn_dtype", "fp8")
    put(encoder, "mm_encoder_fp8_scale_path", path)
    put(config.model_config, "multimodal_config", encoder)
    if path:
        build(config)
        return
    with pytest.raises(ConfigError, match="mm_encoder_attn_dtype"):
        build(config)


@pytest.mark.parametrize("algorithm", ["xxhash", "xxhash_cbor"])
def test_a_weak_hash_without_a_secret_is_refused(
    config: Any, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(config.cache_config, "prefix_caching_hash_algo", algorithm)
    with pytest.raises(ConfigError, match="prefix_caching_hash_algo") as refusal:
        build(config)
    assert "PYTHONHASHSEED" in str(refusal.value) and "allow_weak_hash" in str(refusal.value)
    assert "PYTHONHASHSEED" not in os.environ
    monkeypatch.setenv("PYTHONHASHSEED", "271828")
    seed = build(config).fields["hash"]["seed"]
    assert seed.startswith("sha256:") and "271828" not in seed


@pytest.mark.parametrize("place", ["connector", "tier"])
def test_a_weak_hash_may_be_allowed(config: Any, place: str) -> None:
    put(config.cache_config, "prefix_caching_hash_algo", "xxhash")
    extra = config.kv_transfer_config.kv_connector_extra_config
    if place == "connector":
        extra["allow_weak_hash"] = True
    else:
        extra["secondary_tiers"] = [{"type": "KvshelfTier", "allow_weak_hash": "true"}]
    build(config)


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor", "xxhash"])
def test_an_identity_changes_no_environment(config: Any, algorithm: str) -> None:
    put(config.cache_config, "prefix_caching_hash_algo", algorithm)
    config.kv_transfer_config.kv_connector_extra_config["allow_weak_hash"] = True
    before = dict(os.environ)
    build(config)
    assert dict(os.environ) == before


@pytest.mark.parametrize("algorithm", ["sha256", "xxhash"])
@pytest.mark.parametrize("fixed", [None, "vllm's own"])
def test_the_connector_sets_the_seed_where_vllm_would_draw_one(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, fixed: str | None
) -> None:
    made = SimpleNamespace() if fixed is None else SimpleNamespace(DEFAULT_NONE_HASH_SEED=fixed)
    monkeypatch.setattr(compat, "kv_cache_utils", made)
    needed = fixed is None or algorithm == "xxhash"
    expected = compat.hash_seed(algorithm)
    assert expected == ("0" if needed else fixed)
    patches.fix_hash_seed(algorithm)
    assert os.environ.get("PYTHONHASHSEED") == ("0" if needed else None)
    assert compat.hash_seed(algorithm) == expected
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    patches.fix_hash_seed(algorithm)
    assert os.environ["PYTHONHASHSEED"] == compat.hash_seed(algorithm) == "7"
