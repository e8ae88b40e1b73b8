"""Everything that decides what a chunk's bytes are, gathered from vLLM's configuration.

Two engines share chunks only if every field here is equal; ``kvshelf diff ROOT A B``
prints the fields that are not. Of vLLM's configuration everything is in, but for what
``identity_fields`` and ``identity_env`` leave out, each with its reason. When in doubt a field is
in: an identity that is too fine costs hits, one that is too coarse costs correct answers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vllm import envs
from vllm.platforms import current_platform

from kvshelf.config import Settings
from kvshelf.disk.namespace import Identity
from kvshelf.errors import ConfigError
from kvshelf.vllm import compat
from kvshelf.vllm.identity.env import environment_fields
from kvshelf.vllm.identity.fields import fields_in
from kvshelf.vllm.identity.model_files import file_digests
from kvshelf.vllm.identity.refusals import refuse
from kvshelf.vllm.identity.values import plain as _plain
from kvshelf.weights import Weights, draft_of, load_format_of, model_name, weights_of

logger = compat.logger_of(__name__)

# Fields of a Hugging Face configuration that never reach the model: bookkeeping of the library,
# labels, sampling defaults of generation.
_VOLATILE_CONFIG_FIELDS = frozenset(
    {"transformers_version", "_name_or_path", "id2label", "label2id", "torch_dtype", "dtype"}
)
# The settings of kvshelf that an identity needs. A tier's own come after the connector's.
_SETTINGS = ("allow_weak_hash", "weights_cache_dir", "weights_wait_seconds")
# Options of loaders that say how fast, not what, they read.
_SPEED_OPTIONS = frozenset(
    {
        "concurrency",
        "distributed",
        "enable_multithread_load",
        "enable_weights_track",
        "memory_limit",
        "num_threads",
    }
)


def build_identity(vllm_config: Any, kv_cache_config: Any, salt: str) -> Identity:
    """Make the namespace of this engine; equal in the scheduler's and all workers' processes.

    Args:
        vllm_config: vLLM's VllmConfig.
        kv_cache_config: vLLM's KVCacheConfig as given to the connector.
        salt: the ``identity_salt`` setting; engines that differ in it never share.

    Raises:
        ConfigError: KV would not be a function of the identity and of tokens, or a file of the
            model is missing, unreadable or changes meanwhile.
    """
    begun = time.monotonic()
    if not isinstance(salt, str):
        raise ConfigError("identity_salt", salt, "a text")
    settings = _settings(vllm_config)
    refuse(vllm_config, allow_weak_hash=settings.allow_weak_hash)
    model, load, cache = (
        vllm_config.model_config,
        vllm_config.load_config,
        vllm_config.cache_config,
    )
    algorithm = str(cache.prefix_caching_hash_algo)
    config = _config_fields(model)
    groups = kv_cache_config.kv_cache_groups
    stages = int(vllm_config.parallel_config.pipeline_parallel_size)
    weights = weights_of(model, load, settings)
    fields = {
        **fields_in(vllm_config),
        "format": 2,
        "engine": f"vllm-{compat.version_line()}",
        "model": model_name(str(model.model)),
        "weights": weights.name,
        "load": _load_fields(model, load, weights),
        "files": file_digests(model, load),
        "hf_config": config,
        "context": _context_fields(model, config),
        "cache_dtype": _cache_dtype(cache, groups),
        "kv_cache_layout": compat.kv_cache_layout(vllm_config, kv_cache_config),
        "environment": environment_fields(envs.environment_variables),
        "device": _device(),
        "block_tokens": [_block_tokens(group) for group in groups],
        "chunk": _chunk_fields(vllm_config),
        "groups": [_group_fields(group, stages) for group in groups],
        "parallel": _parallel_fields(vllm_config.parallel_config),
        "hash": {"algorithm": algorithm, "seed": _hash_seed(algorithm)},
        "salt": salt,
    }
    fields["speculative_config"] = _speculative_fields(
        fields["speculative_config"], vllm_config, settings
    )
    identity = Identity(fields)
    logger.info(
        "kvshelf: identity ready in %.1f s (weights: %s)", time.monotonic() - begun, weights.how
    )
    return identity


def _hash_seed(algorithm: str) -> str:
    """The seed of block hashes; of a weak hash not the seed itself, which is to stay secret."""
    seed = compat.hash_seed(algorithm)
    if algorithm.startswith("xxhash"):
        return f"sha256:{hashlib.sha256(seed.encode()).hexdigest()[:16]}"
    return seed


def _settings(vllm_config: Any) -> Settings:
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    tiers = [tier for tier in extra.get("secondary_tiers") or () if isinstance(tier, dict)]
    given = {name: each[name] for each in (extra, *tiers) for name in _SETTINGS if name in each}
    # A root is checked where it is used: a tier's is elsewhere.
    return Settings.from_mapping({"shared_storage_path": "/", **given})


def _load_fields(model: Any, load: Any, weights: Weights) -> Any:
    """The options of a loader that choose what it loads. Where no file says what is in memory, all
    that is known of its source."""
    extra = load.model_loader_extra_config
    if isinstance(extra, Mapping):
        extra = {name: extra[name] for name in extra if name not in _SPEED_OPTIONS}
    fields = {"options": _plain(extra)}
    if not weights.are_known:
        fields |= {
            "format": load_format_of(load),
            "source": _plain(getattr(model, "model_weights", "")) or None,
            "revision": _plain(model.revision),
            "seed": _plain(model.seed),
        }
    return fields


def _config_fields(model: Any) -> dict[str, Any]:
    """All of the model's configuration (rope, head sizes, layers ...), overrides included."""
    try:
        config = compat.untouched_hf_config(model)
    except Exception as error:  # of many kinds; all processes meet it, or the manager says so
        logger.warning("kvshelf: the model's configuration cannot be read again: %s", error)
        config = model.hf_config
    fields = _plain(config.to_dict())
    return {name: fields[name] for name in sorted(fields) if name not in _VOLATILE_CONFIG_FIELDS}


def _context_fields(model: Any, config: Mapping[str, Any]) -> Any:
    """What a few models make of the longest context that the engine allows; None for the others,
    whose replicas may differ in it.

    Source: vLLM's phi3_long_rope_scaled_rope.py chooses the factors of LongRoPE, and with them
    keys, by max_model_len; llama4.py its temperature tuning, if the generation configuration does
    not say. ``original_max_model_len`` is what the model was loaded with where vLLM then fits it.
    """
    if not any(
        value in ("longrope", "su") or (name == "model_type" and str(value).startswith("llama4"))
        for name, value in _leaves(config)
    ):
        return None
    names = ("max_model_len", "original_max_model_len", "override_generation_config")
    return {name: _plain(getattr(model, name, None)) for name in names}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All plain values in a JSON value, each with the name that it, or the list it is in, has."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value


def _cache_dtype(cache: Any, groups: Any) -> Any:
    """The KV cache's type; None where each group says it (``cache_dtype_str``, in its fields):
    sparse MLA layers settle it while they are loaded, in the workers' configuration alone."""
    if all(getattr(_representative(group), "cache_dtype_str", None) for group in groups):
        return None
    return _plain(cache.cache_dtype)


def _device() -> str:
    """Kind of device, as far as it chooses attention kernels and with them the layout of KV."""
    if current_platform.is_cpu():
        # CPU attention packs keys for the instruction set that it finds.
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        return f"cpu-{torch.backends.cpu.get_cpu_capability()}{'-amx' if amx else ''}"
    capability = current_platform.get_device_capability()
    return f"{current_platform.device_type}-{capability}"


def _block_tokens(group: Any) -> int:
    return int(_representative(group).block_size)


def _representative(group: Any) -> Any:
    """One layer's spec: workers keep all of a mixed group, the scheduler only the first."""
    specs = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return next(iter(specs.values())) if specs else group.kv_cache_spec


def _group_fields(group: Any, stages: int) -> dict[str, Any]:
    """
    Args:
        stages: of the pipeline. If there are several, each knows its own layers only, and the
            scheduler the first one's; the parallel sizes and ranks then say which they are, and the
            page sizes in a chunk file's header how many.
    """
    spec = _representative(group)
    names = (
        "num_kv_heads",
        "head_size",
        "head_size_v",
        "dtype",
        "sliding_window",
        "cache_dtype_str",
    )
    fields = {name: _plain(getattr(spec, name)) for name in names if hasattr(spec, name)}
    if stages == 1:
        names_digest = hashlib.sha256(json.dumps(list(group.layer_names)).encode()).hexdigest()
        fields |= {"layers": len(group.layer_names), "layer_names": names_digest[:16]}
    return {"kind": type(spec).__name__, "page_bytes": int(spec.page_size_bytes), **fields}


def _chunk_fields(vllm_config: Any) -> dict[str, Any]:
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    return {name: _plain(extra.get(name)) for name in ("block_size", "blocks_per_chunk")}


def _parallel_fields(parallel: Any) -> dict[str, int]:
    names = {
        "tensor": "tensor_parallel_size",
        "pipeline": "pipeline_parallel_size",
        "prefill_context": "prefill_context_parallel_size",
        "decode_context": "decode_context_parallel_size",
        "world": "world_size",
    }
    sizes = {short: int(getattr(parallel, name, 1)) for short, name in names.items()}
    if sizes["decode_context"] > 1 or sizes["prefill_context"] > 1:
        # Which rank has which tokens; vLLM lets the older of two settings win.
        old = int(getattr(parallel, "dcp_kv_cache_interleave_size", 1))
        new = int(getattr(parallel, "cp_kv_cache_interleave_size", 1))
        sizes["interleave_tokens"] = old if old > 1 and sizes["decode_context"] > 1 else new
    return sizes


def _speculative_fields(fields: Any, vllm_config: Any, settings: Settings) -> Any:
    """vLLM's fields, and what stands for a draft model's name and revision."""
    if fields is None:
        return None
    drafts = [
        {
            "model": model_name(str(draft.model)),
            "weights": (weights := weights_of(draft, load, settings)).name,
            "load": _load_fields(draft, load, weights),
            "files": file_digests(draft, load, is_draft=True),
        }
        for draft, load in draft_of(vllm_config)
    ]
    known = fields if isinstance(fields, dict) else {"options": fields}
    return {**known, "draft": drafts[0] if drafts else None}
