"""Configurations under which KV is no function of an identity and of what vLLM hashes."""

from __future__ import annotations

import os
from typing import Any

from kvshelf.errors import ConfigError


def refuse(vllm_config: Any, *, allow_weak_hash: bool) -> None:
    """End the start of an engine that would store what others must not load.

    Raises:
        ConfigError: it names vLLM's option, and what to use.
    """
    cache = vllm_config.cache_config
    if getattr(cache, "calculate_kv_scales", False):
        raise ConfigError(
            "calculate_kv_scales",
            True,
            "leave out --calculate-kv-scales: each engine would take the scales of its KV from its "
            "first batch, so no other engine, and no later start, can read it; use a checkpoint "
            "with KV scales",
        )
    _refuse_scales_of_encoders(vllm_config.model_config)
    algorithm = str(cache.prefix_caching_hash_algo)
    if algorithm.startswith("xxhash") and not allow_weak_hash:
        _refuse_weak_hash(algorithm)


def _refuse_scales_of_encoders(model: Any) -> None:
    config = getattr(model, "multimodal_config", None)
    dtype = getattr(config, "mm_encoder_attn_dtype", None)
    if dtype == "fp8" and not getattr(config, "mm_encoder_fp8_scale_path", None):
        raise ConfigError(
            "mm_encoder_attn_dtype",
            dtype,
            "give --mm-encoder-fp8-scale-path too: without it the encoder takes its scales from "
            "earlier requests, so KV of one picture differs from engine to engine",
        )


def _refuse_weak_hash(algorithm: str) -> None:
    """xxhash is no cryptographic hash: whoever knows the seed makes two prompts of one key. vLLM
    keeps its seed secret for that reason; kvshelf needs one that replicas share."""
    if os.environ.get("PYTHONHASHSEED"):
        return
    raise ConfigError(
        "prefix_caching_hash_algo",
        algorithm,
        "use --prefix-caching-hash-algo sha256, or set one secret PYTHONHASHSEED (a number) for "
        "all replicas, or allow_weak_hash: with a known seed, clients can make prompts that are "
        "answered from other prompts' KV",
    )
