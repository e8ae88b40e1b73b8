"""Faults of vLLM's offloading connector that would store wrong bytes or end the engine, and the
guard against each. Sibling of ``compat``: each says which versions have the fault.

All work on the connector's scheduler side (vLLM's OffloadingConnectorScheduler) and change only
what it reads next; none replaces its code. Scheduler's thread only.
"""

from __future__ import annotations

import copy
from typing import Any

from prometheus_client import REGISTRY
from vllm.v1.kv_offload.factory import OffloadingSpecFactory

from kvshelf.vllm.bounded import drop_oldest

# Loads of other connectors that are remembered: more than a prefix cache holds at a time.
FOREIGN_MAX = 65_536


def note_allocated(side: Any, blocks: Any) -> None:
    """Count a request's new blocks as reused, so that stores that still read them are flushed.

    Up to 0.32 vLLM counts only blocks of requests that are scheduled or that this connector loads.
    Blocks that another connector of a MultiConnector loads into are neither: a queued store of a
    finished request then reads a foreign request's KV. A block with a hash is a cached one: its
    content stays, and flushing its stores would only lose them.

    Args:
        blocks: vLLM's KVCacheBlocks, all of the request's.
    """
    side._current_batch_allocated_block_ids.update(
        block.block_id
        for group in blocks.blocks
        for block in group
        if block.block_hash is None and not block.is_null
    )


def note_copied(side: Any, scheduler_output: Any) -> None:
    """Count targets of block copies as reused likewise; vLLM does since 0.29."""
    side._current_batch_allocated_block_ids.update(
        each.dst_block_id for each in getattr(scheduler_output, "kv_cache_block_copies", None) or ()
    )


def without_reloads(side: Any, scheduler_output: Any) -> Any:
    """The step's output, whose preempted requests have no load of their own under way.

    vLLM flushes the stores of preempted requests and asserts that these are stores. A cache reset
    preempts a request and may load it again in the same step: up to 0.32 the assertion ends the
    engine. Such a load needs no flush: its blocks are its own.
    """
    preempted = scheduler_output.preempted_req_ids or ()
    loading = {req_id for req_id in preempted if _loads(side, req_id)}
    if not loading:
        return scheduler_output
    changed = copy.copy(scheduler_output)
    changed.preempted_req_ids = set(preempted) - loading
    return changed


def _loads(side: Any, req_id: str) -> bool:
    status = side._req_status.get(req_id)
    jobs = () if status is None else status.transfer_jobs
    return any(not side._jobs[job].is_store for job in jobs)


def store_only_computed(side: Any, request: Any) -> None:
    """Bound what vLLM stores of a request that ends by what was computed of it.

    vLLM offers a request's last chunks one step after its end, as far as its tokens reach:

    - up to 0.29 with the last sampled token, whose slot nobody computed;
    - in 0.26 with all tokens of an aborted request, computed or not, which reads slots that were
      never written, or ends the engine by an assertion if blocks are missing;
    - in all versions with all tokens of a preempted request that ends (a step in flight answered
      its last token, or it failed): its blocks are others' by then.

    ``num_computed_tokens`` counts steps that are scheduled: they run before the store reads. Of a
    preempted request it is 0. Tokens before the last one were all computed, or are accepted drafts.
    """
    status = side._req_status.get(request.request_id)
    if status is None:
        return
    certain = min(
        request.num_computed_tokens, max(request.num_prompt_tokens, request.num_tokens - 1)
    )
    if not hasattr(status, "finished_signaled"):  # 0.26 asserts that every block is there
        per_chunk = side.config.blocks_per_chunk
        for group, state in zip(side.config.kv_group_configs, status.group_states, strict=True):
            whole = len(state.block_ids) // per_chunk
            certain = min(certain, whole * group.tokens_per_chunk)
    limit = status.max_offload_tokens
    status.max_offload_tokens = certain if limit is None else min(limit, certain)


def is_host_memory(extra: dict[str, Any]) -> bool:
    """Whether an offloading connector's settings mean this engine's own host memory and no more.

    TieringOffloadingSpec is a CPUOffloadingSpec too, in all versions: tiers may hold others' KV.
    """
    from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec  # noqa: PLC0415 - few need it

    spec = OffloadingSpecFactory.get_spec_cls(extra)
    return issubclass(spec, CPUOffloadingSpec) and not extra.get("secondary_tiers")


def forget_series() -> None:
    """Take our series off Prometheus' registry, as vLLM takes its own ("vllm:") for each engine.

    Without that a second engine in a process cannot register them. All versions.
    """
    for collector in list(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith("kvshelf:"):
            REGISTRY.unregister(collector)


class ForeignBlocks:
    """Blocks in vLLM's prefix cache that another connector has loaded, by their hashes.

    A request that reuses one must not be stored: not the block, and nothing computed after it. A
    hash covers all blocks before it, so the first block of each load is enough.
    """

    def __init__(self) -> None:
        self._first: dict[bytes, None] = {}

    def loaded(self, side: Any, request: Any) -> None:
        """Another connector loads what follows this request's local hit."""
        status = side._req_status.get(request.request_id)
        local_tokens = 0 if status is None else status.num_locally_computed_tokens
        first = local_tokens // _tokens_per_hash(side)
        if first < len(request.block_hashes):
            self._first[request.block_hashes[first]] = None
            drop_oldest(self._first, FOREIGN_MAX)

    def are_reused(self, side: Any, request: Any, local_tokens: int) -> bool:
        """Whether so many tokens of a request's local hit contain such a block."""
        if not self._first or not local_tokens:
            return False
        hashes = request.block_hashes[: local_tokens // _tokens_per_hash(side)]
        return not self._first.keys().isdisjoint(hashes)


def _tokens_per_hash(side: Any) -> int:
    group = side.config.kv_group_configs[0]
    return int(group.tokens_per_chunk // group.hashes_per_chunk)
