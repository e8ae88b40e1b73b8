"""Chunk keys: vLLM's ``OffloadKey`` bytes, a block hash followed by a group index.

Pure functions: no I/O, no threads. Source: vLLM ``vllm/v1/kv_offload/base.py`` (make_offload_key).
"""

from __future__ import annotations

from typing import NewType

# A key is the hash of a chunk's last block (any length vLLM's hash function gives, 32 bytes for
# SHA-256) and the KV cache group index, 4 bytes big-endian.
ChunkKey = NewType("ChunkKey", bytes)

GROUP_BYTES = 4
# The header of a chunk file has room for this many bytes of key (docs/format.md).
KEY_BYTES_MAX = 128
# A shorter hash would make the folder and file names ambiguous; no vLLM hash is shorter.
HASH_BYTES_MIN = 8


def make_key(block_hash: bytes, group: int) -> ChunkKey:
    """Join a block hash (8 to 124 bytes) and a group index (0 to 2**32 - 1).

    Raises:
        ValueError: the hash is too short or too long.
        OverflowError: the group index does not fit in 4 bytes.
    """
    if not HASH_BYTES_MIN <= len(block_hash) <= KEY_BYTES_MAX - GROUP_BYTES:
        raise ValueError(
            f"block hash of {len(block_hash)} bytes: allowed are {HASH_BYTES_MIN} to "
            f"{KEY_BYTES_MAX - GROUP_BYTES}"
        )
    return ChunkKey(block_hash + group.to_bytes(GROUP_BYTES, "big"))


def hash_of(key: bytes) -> bytes:
    """The block hash in a key."""
    return key[:-GROUP_BYTES]


def group_of(key: bytes) -> int:
    """The KV cache group index in a key."""
    return int.from_bytes(key[-GROUP_BYTES:], "big")
