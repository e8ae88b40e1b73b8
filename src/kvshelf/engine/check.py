"""What an engine refuses, checked in Python: for engines that are not the native core."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvshelf.disk.keys import GROUP_BYTES, KEY_BYTES_MAX, KEY_BYTES_MIN
from kvshelf.engine.base import Batch, GroupMemory

# What Linux allows for one name and for a whole path with its end.
_NAME_BYTES_MAX = 255
_PATH_BYTES_MAX = 4095
# Pieces whose checksums a header has room for (docs/format.md).
_PIECES_MAX = 448


def check_paths(paths: Sequence[str]) -> None:
    """
    Raises:
        ValueError: one is not that of a file beneath the root.
    """
    for path in paths:
        names = path.split("/")
        if (
            "\0" in path
            or any(name in ("", ".", "..") for name in names)
            or max(len(name.encode()) for name in names) > _NAME_BYTES_MAX
            or len(path.encode()) > _PATH_BYTES_MAX
        ):
            raise ValueError(f"path {path[:80]!r} is not that of a file beneath the root")


def check_keys(keys: Sequence[bytes]) -> None:
    """
    Raises:
        ValueError: one is too short or too long.
    """
    if not all(KEY_BYTES_MIN <= length <= KEY_BYTES_MAX for length in set(map(len, keys))):
        raise ValueError(f"keys must have {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes")


def check_mask(keys: Sequence[bytes], mask: bytes) -> None:
    """
    Raises:
        ValueError: it is shorter than a key's hash.
    """
    if mask and any(len(mask) < length - GROUP_BYTES for length in set(map(len, keys))):
        raise ValueError("a mask must be as long as the hashes of the keys, or empty")


def check_lookup_keys(
    folders: Sequence[str], keys: Sequence[bytes], runs: Sequence[int], mask: bytes = b""
) -> None:
    """
    Raises:
        ValueError: see ``Engine.submit_lookup_keys``.
    """
    if not folders or not keys:
        raise ValueError("a lookup needs at least one folder and one key")
    check_paths(folders)
    check_keys(keys)
    check_mask(keys, mask)
    if any(run < 1 for run in runs) or sum(runs) > len(keys):
        raise ValueError("runs: each at least 1, together at most as many as keys")


def check_touch_keys(
    folders: Sequence[str], keys: Sequence[bytes], times_ns: Sequence[int], mask: bytes = b""
) -> None:
    """
    Raises:
        ValueError: see ``Engine.touch_keys``.
    """
    check_paths(folders)
    check_keys(keys)
    check_mask(keys, mask)
    if len(keys) != len(times_ns) or any(time <= 0 for time in times_ns):
        raise ValueError("times_ns: one a key, above 0")


def check_batch(batch: Batch, groups: Sequence[GroupMemory]) -> None:
    """
    Raises:
        ValueError: see ``Engine.submit_store``.
    """
    rows = len(batch.paths)
    columns = (batch.groups, batch.first_blocks, batch.block_counts, batch.block_ids)
    if any(column.dtype != np.int32 or column.ndim != 1 for column in columns):
        raise ValueError("columns must be one-dimensional int32 arrays")
    if rows == 0 or any(len(column) != rows for column in (batch.keys, *columns[:3])):
        raise ValueError("columns are empty or of different lengths")
    if batch.block_counts.min() < 1 or batch.block_counts.sum() != len(batch.block_ids):
        raise ValueError("block_counts are below 1 or do not add up to block_ids")
    if batch.first_blocks.min() < 0:
        raise ValueError("a first block is negative")
    if batch.groups.min() < 0 or batch.groups.max() >= len(groups):
        raise ValueError("a group is out of range")
    limits = np.array([group.num_blocks for group in groups])[batch.groups]
    if batch.block_ids.min() < 0 or (batch.block_ids >= limits.repeat(batch.block_counts)).any():
        raise ValueError("a block id is out of range")
    check_keys(batch.keys)
    check_paths(batch.paths)


def check_store(batch: Batch, groups: Sequence[GroupMemory], piece_bytes: int) -> None:
    """``check_batch``, and what a store needs besides.

    Raises:
        ValueError: see ``Engine.submit_store``.
    """
    check_batch(batch, groups)
    for path in batch.paths:
        if "/" not in path:
            raise ValueError(f"path {path!r} of a store needs a namespace folder")
    block_bytes = np.array([group.block_bytes for group in groups])[batch.groups]
    if (batch.block_counts * block_bytes > _PIECES_MAX * piece_bytes).any():
        raise ValueError(f"a chunk needs more than {_PIECES_MAX} pieces")
