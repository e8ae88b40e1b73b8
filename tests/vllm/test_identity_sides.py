"""One namespace for the scheduler and all its workers, whatever loading a model does to their
configurations; and another where the longest context changes keys."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
)

from kvshelf.disk.namespace import Identity  # noqa: E402
from kvshelf.vllm import compat  # noqa: E402
from kvshelf.vllm.identity import build_identity  # noqa: E402

from .configs import kv_cache_config, vllm_config  # noqa: E402

LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
    "original_max_position_embeddings": 512,
}


def identity(config: Any, kv: Any = None) -> Identity:
    return build_identity(config, kv or kv_cache_config(), "")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"rms_norm_eps": 1e-3},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        lambda config: config.update({"rms_norm_eps": 1e-3}) or config,
    ],
    ids=["none", "flat", "nested", "callable"],
)
def test_what_is_read_again_is_what_vllm_read(tmp_path: Path, overrides: Any) -> None:
    model = vllm_config(tmp_path / "tiny", hf_overrides=overrides).model_config
    assert compat.untouched_hf_config(model).to_dict() == model.hf_config.to_dict()


def test_a_model_that_writes_to_its_configuration_stays_in_its_namespace(tmp_path: Path) -> None:
    """As DeepSeek does to its rope, MiniMax with a length and Falcon with a default."""
    scheduler = vllm_config(tmp_path / "tiny")
    worker = copy.deepcopy(scheduler)
    worker.model_config.hf_config.update({"rope_theta": 5e5, "max_model_len": 4096})
    assert identity(worker) == identity(scheduler)


def test_a_model_that_writes_to_a_dict_of_the_users_does_too(tmp_path: Path) -> None:
    """vLLM puts the dicts of --hf-overrides themselves into the configuration."""
    scheduler = vllm_config(
        tmp_path / "tiny",
        hf_overrides={"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    )
    worker = pickle.loads(pickle.dumps(scheduler))
    worker.model_config.hf_config.rope_parameters["rope_type"] = "another"
    assert worker.model_config.hf_config.to_dict() != scheduler.model_config.hf_config.to_dict()
    assert identity(worker) == identity(scheduler)


def test_files_that_are_gone_leave_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vllm_config(tmp_path / "tiny")
    before = identity(config)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no such file")

    monkeypatch.setattr(compat, "untouched_hf_config", refuse)
    assert identity(config) == before


def test_stages_of_a_pipeline_share_a_namespace(tmp_path: Path) -> None:
    """Each has its own layers; the scheduler has the first stage's."""
    config = vllm_config(tmp_path / "tiny", pipeline_parallel_size=2)
    stages = []
    for layers in (range(2), range(2, 5)):
        kv = kv_cache_config()
        group = kv.kv_cache_groups[0]
        names = [f"layers.{i}.attn" for i in layers]
        stages.append(
            dataclasses.replace(kv, kv_cache_groups=[KVCacheGroupSpec(names, group.kv_cache_spec)])
        )
    assert identity(config, stages[0]) == identity(config, stages[1])
    alone = vllm_config(tmp_path / "tiny")
    assert identity(alone, stages[0]) != identity(alone, stages[1])


def mla(cache_dtype: str) -> Any:
    spec = MLAAttentionSpec(
        block_size=32,
        num_kv_heads=1,
        head_size=576,
        dtype=torch.uint8,
        cache_dtype_str=cache_dtype,
    )
    return KVCacheConfig(
        num_blocks=16, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["a"], spec)]
    )


def test_a_cache_type_that_layers_settle_is_theirs(tmp_path: Path) -> None:
    """Sparse MLA: "fp8" becomes "fp8_ds_mla" in the workers' configuration alone."""
    scheduler = vllm_config(tmp_path / "tiny")
    worker = copy.deepcopy(scheduler)
    object.__setattr__(worker.cache_config, "cache_dtype", "fp8_ds_mla")
    assert identity(worker, mla("fp8_ds_mla")) == identity(scheduler, mla("fp8_ds_mla"))
    assert identity(worker, mla("fp8_ds_mla")) != identity(worker, mla("fp8"))
    assert identity(worker) != identity(scheduler)


@pytest.mark.parametrize(
    "hf",
    [{"rope_scaling": LONG_ROPE}, {"model_type": "llama4_text"}],
    ids=["LongRoPE", "Llama 4"],
)
def test_the_longest_context_counts_where_keys_depend_on_it(
    tmp_path: Path, hf: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vllm_config(tmp_path / "tiny", max_model_len=256)
    fields = {**config.model_config.hf_config.to_dict(), **hf}
    monkeypatch.setattr(config.model_config.hf_config, "to_dict", lambda: fields)
    monkeypatch.setattr(compat, "untouched_hf_config", lambda model: model.hf_config)
    seen = {identity(config).digest}
    for name, value in (
        ("max_model_len", 1024),
        ("original_max_model_len", -1),
        ("override_generation_config", {"attn_temperature_tuning": True}),
    ):
        object.__setattr__(config.model_config, name, value)
        seen.add(identity(config).digest)
    assert len(seen) == 4


def test_the_longest_context_does_not_count_elsewhere(tmp_path: Path) -> None:
    short, long = (
        identity(vllm_config(tmp_path / "tiny", max_model_len=n, hf_overrides={}))
        for n in (256, 1024)
    )
    assert short == long and short.fields["context"] is None


def test_the_order_of_tokens_among_ranks_counts(tmp_path: Path) -> None:
    config = vllm_config(tmp_path / "tiny")
    parallel = config.parallel_config
    plain = identity(config)
    object.__setattr__(parallel, "cp_kv_cache_interleave_size", 16)
    assert identity(config) == plain  # of one rank it means nothing
    object.__setattr__(parallel, "decode_context_parallel_size", 2)
    new = identity(config)
    object.__setattr__(parallel, "dcp_kv_cache_interleave_size", 8)
    old = identity(config)
    object.__setattr__(parallel, "cp_kv_cache_interleave_size", 8)
    assert identity(config) == old != new != plain


# What vLLM's workers, models and loaders write to their own copies (found in 0.26 to 0.33).
WORKERS_WRITE = {
    "parallel_config.rank": 3,
    "parallel_config.disable_custom_all_reduce": True,
    "parallel_config.assigned_physical_gpu_ids": [3],
    "parallel_config.placement_group": object(),
    "parallel_config.numa_bind_nodes": [1],
    "cache_config.num_gpu_blocks": 7,
    "cache_config.num_gpu_blocks_override": 7,
    "cache_config.kv_cache_memory_bytes": 7,
    "cache_config.block_size": 64,
    "cache_config.hash_block_size": 16,
    "cache_config.cache_hit_alignment_tokens": 16,
    "cache_config.enable_prefix_caching": False,
    "cache_config.sliding_window": None,
    "model_config.max_model_len": 64,
    "load_config.safetensors_load_strategy": "torchao",
    "attention_config.sparse_mla_force_mqa": True,
    "compilation_config.cudagraph_mode": 1,
    "compilation_config.compilation_time": 7.0,
    "compilation_config.local_cache_dir": "/rank3",
    "compilation_config.static_forward_context": {"layer": object()},
    "compilation_config.traced_files": {"/a"},
    "quant_config": object(),
}


@pytest.mark.parametrize("path", WORKERS_WRITE)
def test_what_workers_write_leaves_the_namespace(tmp_path: Path, path: str) -> None:
    scheduler = vllm_config(tmp_path / "tiny")
    worker = pickle.loads(pickle.dumps(scheduler))
    parent, _, name = path.rpartition(".")
    target = getattr(worker, parent) if parent else worker
    if not hasattr(target, name):
        pytest.skip("this version lacks the field")
    object.__setattr__(target, name, WORKERS_WRITE[path])
    assert identity(worker) == identity(scheduler)


def test_objects_are_the_same_in_every_process(tmp_path: Path) -> None:
    """Neither an address nor the order of a set may get in."""
    configs = [vllm_config(tmp_path / "tiny") for _ in range(2)]
    for config in configs:
        object.__setattr__(
            config,
            "additional_config",
            {"function": identity, "object": object(), "set": {"b", "a"}, "nan": float("nan")},
        )
    assert identity(configs[0]) == identity(configs[1])
