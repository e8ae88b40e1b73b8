"""Every difference between vLLM 0.26 and 0.33 that kvshelf must know, each with its reason.

No other module may ask for vLLM's version or look for an attribute that only some versions have.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import vllm
from numpy.typing import NDArray
from vllm.distributed.kv_transfer.kv_connector.v1 import base as connector_base
from vllm.logger import init_logger
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_offload import base as offload_base
from vllm.v1.kv_offload.config import OffloadingConfig

from kvshelf.disk.keys import group_of
from kvshelf.errors import ConfigError
from kvshelf.vllm.bounded import drop_oldest

# Versions before 0.30 have no KVConnectorTransferResults: a failed load can only be reported by
# block ids, which name a block within its group, so models with several groups cannot be recovered.
TransferResults: type[Any] | None = getattr(connector_base, "KVConnectorTransferResults", None)

# The event medium of files: a string in 0.26, ``Medium.STORAGE`` since.
STORAGE_MEDIUM: Any = getattr(getattr(offload_base, "Medium", None), "STORAGE", "STORAGE")
# Under this policy every chunk of a request is offered for storing, hits included: kvshelf needs it
# to heal. With the default (BLOCK_LEVEL, later CHUNK_LEVEL) vLLM takes the chunks of a hit for
# stored and never offers them again, also when their load failed and they were recomputed.
REQUEST_LEVEL = offload_base.OffloadPolicy.REQUEST_LEVEL

# Value of PYTHONHASHSEED that kvshelf chooses where vLLM would choose a random root hash.
DEFAULT_HASH_SEED = "0"


def logger_of(name: str) -> logging.Logger:
    """A module's logger, below vLLM's own: only what is there has its format, level and prefix,
    and INFO lines at all."""
    return init_logger(f"vllm.{name}")


def version_line() -> str:
    """vLLM's major and minor version, "0.32": within one, KV layouts do not change."""
    return ".".join(vllm.__version__.split(".")[:2])


def group_ids(config: OffloadingConfig) -> tuple[int, ...]:
    """The KV cache group index of each offloaded group, in order. 0.26 offloads every group."""
    return tuple(getattr(group, "group_id", i) for i, group in enumerate(config.groups))


def kv_cache_layout(vllm_config: Any, kv_cache_config: Any) -> str:
    """The resolved layout name. 0.26 keeps none: the environment decides there."""
    layout = getattr(kv_cache_config, "kv_cache_layout", None) or getattr(
        vllm_config.cache_config, "kv_cache_layout", None
    )
    return str(layout or os.environ.get("VLLM_KV_CACHE_LAYOUT") or "default")


def can_recover(num_groups: int) -> bool:
    """Whether a failed load of a model with so many groups can become a recomputation."""
    return num_groups == 1 or TransferResults is not None


def draws_hash_seed(algorithm: str) -> bool:
    """Whether vLLM starts block hashes at random unless PYTHONHASHSEED is set: 0.26 with every
    hash, later versions with those that are not collision resistant."""
    return algorithm.startswith("xxhash") or not hasattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED")


def hash_seed(algorithm: str) -> str:
    """The seed of all block hashes, as it is once ``patches.fix_hash_seed`` was called."""
    seed = os.environ.get("PYTHONHASHSEED")
    if seed is not None:
        return seed
    if draws_hash_seed(algorithm):
        return DEFAULT_HASH_SEED
    return str(kv_cache_utils.DEFAULT_NONE_HASH_SEED)


def untouched_hf_config(model: Any) -> Any:
    """The model's configuration as its files and the user's overrides say it.

    ``model.hf_config`` is that at first, but many models write to it while they are loaded, in the
    processes that load them: DeepSeek renames its rope, MiniMax adds a length. So the scheduler's
    and the workers' differ.

    Raises:
        whatever vLLM and transformers raise for files that are no longer there.
    """
    from vllm.transformers_utils.config import get_config  # noqa: PLC0415 - only for this

    given = model.hf_overrides
    change = given if callable(given) else None
    flat = {} if change else {k: v for k, v in given.items() if not isinstance(v, dict)}
    nested = {} if change else {k: v for k, v in given.items() if isinstance(v, dict)}
    config = get_config(
        model.hf_config_path or model.model,
        model.trust_remote_code,
        getattr(model, "_hf_config_revision", None) or model.revision,
        model.code_revision,
        model.config_format,
        hf_overrides_kw=flat,
        hf_overrides_fn=change,
        token=model.hf_token,
    )
    if nested:
        model._apply_dict_overrides(config, nested)
    return config


@dataclass(frozen=True, slots=True)
class KeyRun:
    """Keys of one KV cache group of a request.

    Attributes:
        chunk_tokens: tokens of the request that one key stands for.
        is_prefix: only those before the first missing one are of use (not so with a sliding
            window, of which the last ones are enough).
    """

    keys: list[bytes]
    chunk_tokens: int
    is_prefix: bool


def request_keys(scheduler_side: Any, request: Any) -> list[KeyRun]:
    """Keys of all whole chunks of a new request's prompt, group after group.

    Reads the connector's own group configurations; a version that keeps them elsewhere gets no
    keys here, which costs it one step of the scheduler a request and nothing else.
    """
    config = getattr(scheduler_side, "config", None)
    runs: list[KeyRun] = []
    for group in getattr(config, "kv_group_configs", ()):
        stride = group.hashes_per_chunk
        hashes = request.block_hashes[stride - 1 :: stride]
        keys: list[bytes] = [offload_base.make_offload_key(h, group.group_idx) for h in hashes]
        # Without the attribute nothing is known: then every key counts for itself.
        window = getattr(group, "sliding_window_size_in_chunks", 0)
        runs.append(KeyRun(keys, group.tokens_per_chunk, is_prefix=window is None))
    return runs


def load_source() -> Any:
    """Where hits on the shelf come from, for vLLM's metrics: it asks since 0.32."""
    from vllm.v1.metrics.cache_hit_source import CacheHitSource  # noqa: PLC0415 - since 0.32

    return CacheHitSource.DISK


def managers_of(scheduler_side: Any) -> list[Any]:
    """Our managers that vLLM asks about a request's chunks: its own, or those of tiers below it."""
    manager = scheduler_side.manager
    tiers = getattr(manager, "secondary_tiers", ())
    found = [manager, *(getattr(tier, "manager", None) for tier in tiers)]
    return [each for each in found if hasattr(each, "leave_alone")]


def hit_ranges(scheduler_side: Any, computed_tokens: int, tokens: int) -> list[range]:
    """Of each group, the indices of the chunks that vLLM loads for these tokens of a request, at
    most: with a sliding window those in it, and of a state the last one."""
    end = computed_tokens + tokens
    ranges: list[range] = []
    for group in scheduler_side.config.kv_group_configs:
        size = group.tokens_per_chunk
        start, stop = computed_tokens // size, -(-end // size)
        if hasattr(group, "load_window_size_in_chunks"):  # since 0.30
            window = group.load_window_size_in_chunks(end)
        else:
            window = getattr(group, "sliding_window_size_in_chunks", None)
        ranges.append(range(start if window is None else max(start, stop - window), stop))
    return ranges


def bound_event_payloads(scheduler_side: Any, keys_max: int) -> None:
    """Forget the oldest payloads of self-describing KV events.

    vLLM keeps that of a chunk, some 10 KB, until it leaves the CPU's memory. No chunk ever is
    there with us, so all would be kept for ever. A removal without its payload names the chunk's
    last block alone.
    """
    tracker = getattr(scheduler_side, "_events_tracker", None)
    drop_oldest(getattr(tracker, "_pending_event_metadata", {}), keys_max)


def end_tokens(context: Any, keys: Collection[bytes], chunk_tokens: int) -> list[int]:
    """Of each key, how many tokens of its request end with its chunk.

    0.26 does not say: there the keys of each group count as its first ones.
    """
    position = getattr(context, "get_offload_key_position", None)
    ends: list[int] = []
    seen: dict[int, int] = {}
    for key in keys:
        end = position(key) if position is not None else None
        if end is None:
            group = group_of(key)
            end = seen[group] = seen.get(group, 0) + chunk_tokens
        ends.append(end)
    return ends


def tier_rows(job: Any) -> NDArray[np.int32]:
    """Of each key of a tier's job, the row of host memory: ``block_ids`` in 0.26, ``chunk_ids``
    since."""
    ids = job.block_ids if hasattr(job, "block_ids") else job.chunk_ids
    return np.ascontiguousarray(ids, dtype=np.int32)


def tier_result(
    job_id: int,
    *,
    ok: bool,
    loaded: Collection[bytes] = (),
    seconds: float | None = None,
    moved_bytes: int | None = None,
) -> Any:
    """A tier's JobResult. 0.26 and 0.27 know only whether all went well: there one chunk that
    failed to load fails those of its job. 0.28 took keys and time, 0.31 bytes."""
    from vllm.v1.kv_offload.tiering.base import JobResult  # noqa: PLC0415 - the direct path needs none

    given = {
        "successful_keys": None if ok or not loaded else tuple(loaded),
        "transfer_time": seconds,
        "transfer_bytes": moved_bytes,
    }
    known = {name: given[name] for name in given if name in JobResult.__dataclass_fields__}
    return JobResult(job_id=job_id, success=ok, **known)


def set_tier_options(tier: Any, backpressure_detector: Any, locality: str | None) -> None:
    """What later versions keep on a tier; 0.26 knows neither.

    Raises:
        ConfigError: ``locality`` is none of vLLM's.
    """
    tier._bp_detector = backpressure_detector
    tier.locality = None
    kinds = getattr(offload_base, "Locality", None)
    if kinds is None or locality is None:
        return
    try:
        tier.locality = kinds(locality)
    except ValueError:
        allowed = "a Locality of vLLM's: " + ", ".join(kind.value for kind in kinds)
        raise ConfigError("locality", locality, allowed) from None


def row_layout(config: OffloadingConfig) -> tuple[bool, str]:
    """Whether a row of host memory has the same bytes under any tensor parallel size, and the name
    of its layout. vLLM's direct layout never counts: with it sharing has corrupted (vllm#55191)."""
    parallel = config.parallel
    if getattr(config, "canonical_layout", False):
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading import (  # noqa: PLC0415
            canonical_mapping,
        )

        # 0.28 asks its platform for the layout that later versions keep in the configuration.
        known = (config.kv_cache_layout,) if hasattr(config, "kv_cache_layout") else ()
        name = f"canonical {canonical_mapping.canonical_format_id(*known)}"
        return bool(parallel.is_parallelism_agnostic), name
    if getattr(config, "replicated_layout", False):
        return True, "replicated"
    return False, f"direct, {parallel.world_size} ranks"


def info_keys(spec: Any, extra: dict[str, Any]) -> tuple[str, ...]:
    """Label names of a spec's information series; vLLM has none before 0.33."""
    keys = getattr(spec, "config_info_keys", None)
    return tuple(keys(extra)) if keys is not None else ()


def event(keys: Sequence[bytes], *, is_evicted: bool) -> Any:
    """A KV event that says that these chunks can be loaded from storage now, or no longer."""
    return offload_base.OffloadingEvent(keys=list(keys), medium=STORAGE_MEDIUM, removed=is_evicted)


def located(event: Any, locality: Any) -> Any:
    """An event of a tier, with the tier's locality; a version whose events have none gets none."""
    if locality is None or not hasattr(event, "locality"):
        return event
    return replace(event, locality=locality)


def worker_connectors() -> list[Any]:
    """The connectors of a worker's process: the one that vLLM keeps, or its children."""
    from vllm.distributed.kv_transfer import kv_transfer_state  # noqa: PLC0415 - workers only

    if not kv_transfer_state.has_kv_transfer_group():
        return []
    return flat_connectors(kv_transfer_state.get_kv_transfer_group())


def flat_connectors(connector: Any) -> list[Any]:
    """A connector, or the children of a MultiConnector, which vLLM keeps under this name."""
    if connector is None:
        return []
    children = getattr(connector, "_connectors", None)
    return (
        [connector] if children is None else [c for each in children for c in flat_connectors(each)]
    )


def model_config_class() -> Any:
    """vLLM's ModelConfig."""
    from vllm.config import ModelConfig  # noqa: PLC0415 - while a plugin is registered only

    return ModelConfig


def engine_core_classes() -> list[Any]:
    """vLLM's EngineCore, and those of its subclasses that have a loop or a queue of their own."""
    from vllm.v1.engine import core  # noqa: PLC0415 - the scheduler's process only

    return [core.EngineCore, core.EngineCoreProc, core.DPEngineCoreProc]


def scheduler_class() -> Any:
    """vLLM's Scheduler; others of its own inherit from it."""
    from vllm.v1.core.sched.scheduler import Scheduler  # noqa: PLC0415 - likewise

    return Scheduler


def lora_manager_class() -> Any:
    """vLLM's WorkerLoRAManager, which loads adapters."""
    from vllm.lora.worker_manager import WorkerLoRAManager  # noqa: PLC0415 - workers only

    return WorkerLoRAManager


def worker_classes() -> list[Any]:
    """The workers of vLLM with a ``sleep`` of their own."""
    from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415 - workers only

    return [Worker, *Worker.__subclasses__()]
