"""What travels from the manager to the workers: which keys a job stores or loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from vllm.v1.kv_offload.base import GPULoadStoreSpec, LoadStoreSpec, PrepareStoreOutput

from kvshelf.disk.keys import group_of
from kvshelf.shelf import Chunk
from kvshelf.vllm.adapters import Adapter


class ChunkKeysSpec(LoadStoreSpec):
    """The keys of one job's chunk files, in the order of groups and within a group of tokens.

    Pickled from the scheduler's process to the workers'.

    Attributes:
        adapter: with which the KV was or will be computed.
        audited: of a store, indices of the keys that are compared with the shelf, not stored.
    """

    def __init__(
        self, keys: Sequence[bytes], adapter: Adapter | None = None, audited: Sequence[int] = ()
    ) -> None:
        self.keys = tuple(keys)
        self.adapter = adapter
        self.audited = tuple(audited)

    def __repr__(self) -> str:
        return f"ChunkKeysSpec({len(self.keys)} keys)"


def nothing_to_store() -> PrepareStoreOutput:
    """The answer to an offer of which nothing is wanted."""
    return PrepareStoreOutput(keys_to_store=[], store_spec=ChunkKeysSpec(()), evicted_keys=[])


def audited_keys(spec: LoadStoreSpec) -> frozenset[bytes]:
    """Keys of a store that are to be audited."""
    assert isinstance(spec, ChunkKeysSpec)
    return frozenset(spec.keys[index] for index in spec.audited)


@dataclass(slots=True)
class ChunkPlan:
    """Chunks of a job with their blocks, and ``unmapped`` keys whose blocks are unclear."""

    chunks: list[Chunk] = field(default_factory=list)
    unmapped: list[bytes] = field(default_factory=list)


def plan_chunks(
    keys: Sequence[bytes],
    blocks: GPULoadStoreSpec,
    *,
    group_ids: Sequence[int],
    blocks_per_chunk: int,
    is_store: bool,
) -> ChunkPlan:
    """Say which block ids belong to which key.

    vLLM gives, per group, one flat list of block ids and the index (within the request) of the
    first. The first chunk of a group may begin in its middle; the last chunk of a load may end
    early. A store may leave chunks out, but a chunk that it names is there from its first block
    that exists to its end. Where the number of blocks does not fit the number of keys in that
    reading, the assignment would be a guess: those keys are ``unmapped`` (a drop or a failed load,
    never a wrong byte).

    Args:
        keys: of all groups, ordered by group.
        blocks: block_ids int[n], group_sizes and block_indices per group, of one request.
        group_ids: group index found in the keys, per position of group_sizes.
    """
    plan = ChunkPlan()
    by_group: dict[int, list[bytes]] = {}
    for key in keys:
        by_group.setdefault(group_of(key), []).append(key)
    ids = np.ascontiguousarray(blocks.block_ids, dtype=np.int32)
    start = 0
    for group, size, index in zip(group_ids, blocks.group_sizes, blocks.block_indices, strict=True):
        group_blocks = ids[start : start + size]
        start += size
        group_keys = by_group.pop(group, [])
        first = index % blocks_per_chunk
        room = len(group_keys) * blocks_per_chunk
        # Stored chunks need not follow each other, so only whole ones (or a first one without its
        # beginning) are certain; a load is one run of blocks that may stop inside its last chunk.
        end = first + size
        fits = end == room if is_store else room - blocks_per_chunk < end <= room
        if not group_keys or not fits:
            plan.unmapped.extend(group_keys)
            continue
        _append_run(plan.chunks, group_keys, group_blocks, first, blocks_per_chunk)
    for rest in by_group.values():  # keys of a group that this engine does not have
        plan.unmapped.extend(rest)
    return plan


def _append_run(
    chunks: list[Chunk],
    keys: Sequence[bytes],
    ids: NDArray[np.int32],
    first: int,
    blocks_per_chunk: int,
) -> None:
    """Cut consecutive block ids into chunks; the first chunk begins at its block ``first``."""
    position = 0
    for key in keys:
        count = min(blocks_per_chunk - first, len(ids) - position)
        chunks.append(Chunk(key, ids[position : position + count], first))
        position += count
        first = 0
