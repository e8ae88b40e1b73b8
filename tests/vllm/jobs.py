"""What tests of the tier need of vLLM, as each version names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import ReqContext
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering import base

from kvshelf import Identity, make_key

CONTEXT = ReqContext(req_id="r")
IDENTITY = Identity(
    {
        "model": "m",
        "parallel": {"tensor": 2},
        "groups": [{"layers": 4, "num_kv_heads": 2, "page_bytes": 64}],
    }
)


def transfer_job(job_id: int, keys: Sequence[bytes], rows: Sequence[int], *, is_load: bool) -> Any:
    """vLLM's ``TransferJob``, which was ``JobMetadata`` until 0.27."""
    kind = getattr(base, "TransferJob", None) or base.JobMetadata
    return kind(job_id, keys, np.array(rows), is_load, CONTEXT)


def known(kind: type[Any], **values: Any) -> Any:
    """An object of one of vLLM's dataclasses, with those of the values that it has fields for."""
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def has_setting(name: str) -> bool:
    """Whether this vLLM's offloading configuration has a field: ``canonical_layout`` since 0.28,
    ``kv_cache_layout`` since 0.29."""
    return name in {each.name for each in fields(OffloadingConfig)}


def given_identity() -> dict[str, Any]:
    """What our connector leaves in a configuration for the tier."""
    from kvshelf.vllm.spec import IDENTITY_KEY

    return {IDENTITY_KEY: IDENTITY}


def tier_config(**changes: Any) -> OffloadingConfig:
    parallel = known(
        OffloadingParallelConfig,
        rank=0,
        world_size=2,
        tp_size=2,
        pp_size=1,
        pcp_size=1,
        dcp_size=1,
        data_parallel_index=0,
        data_parallel_size=1,
        data_parallel_rank_local=None,
        is_parallelism_agnostic=changes.pop("agnostic", True),
    )
    made = known(
        OffloadingConfig,
        groups=tuple(
            known(OffloadingGroupConfig, tokens_per_block=32, layer_names=(name,), group_id=i)
            for i, name in enumerate("ab")
        ),
        worker_kv_bytes_per_block=1,
        enable_kv_cache_events=True,
        extra_config={} if "extra_config" in changes else given_identity(),
        engine_id="e",
        model=OffloadingModelConfig("m", "float32"),
        cache=OffloadingCacheConfig(tokens_per_hash=32, blocks_per_chunk=4),
        parallel=parallel,
        kv_cache_layout="LBNHC",
    )
    return replace(made, **changes)


def tier_spec(made: OffloadingConfig | None = None) -> Any:
    made = made or tier_config()
    return SimpleNamespace(config=made, extra_config=made.extra_config, blocks_per_chunk=4)


def key(i: int, group: int = 0) -> bytes:
    return make_key(i.to_bytes(32, "big"), group)
