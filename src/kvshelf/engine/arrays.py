"""NumPy arrays as the engines take them: block ids, and block memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvshelf.engine.base import GroupMemory, Pages


def as_block_ids(block_ids: Any) -> NDArray[np.int32]:
    """Block ids for the engine, which checks their range; only int32 comes without a copy.

    Raises:
        ValueError: they are no integers, or do not fit: NumPy itself would cut them.
    """
    if isinstance(block_ids, np.ndarray) and block_ids.dtype == np.int32:
        return block_ids
    ids = np.asarray(block_ids)
    if ids.size == 0:
        return np.empty(0, dtype=np.int32)
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError("block ids must be integers from 0 to 2**31 - 1")
    return ids.astype(np.int32)


def groups_of(
    arrays: NDArray[Any] | Sequence[Sequence[NDArray[Any]]],
) -> tuple[Sequence[Sequence[NDArray[Any]]], list[GroupMemory]]:
    """One array, or per group a list of one array a layer: nested in groups, and as memory.

    Raises:
        ValueError: as ``pages_of``; a group has no layers; a list of arrays is not nested in a
            list of groups.
    """
    nested = [[arrays]] if isinstance(arrays, np.ndarray) else arrays
    if any(isinstance(layers, np.ndarray) or not layers for layers in nested):
        raise ValueError("give one array, or a list of groups, each a list of one array a layer")
    return nested, [
        GroupMemory(tuple(map(pages_of, layers)), min(map(len, layers))) for layers in nested
    ]


def pages_of(array: NDArray[Any]) -> Pages:
    """A layer's pages: the array is [num_blocks, ...] with every block contiguous.

    Raises:
        ValueError: it has no blocks, or they overlap, are read-only or hold Python objects.
    """
    if array.ndim < 1 or not len(array) or not array[0].flags.c_contiguous or not array[0].nbytes:
        raise ValueError("an array must be [num_blocks, ...] with each block contiguous")
    if not array.flags.writeable or array.dtype.hasobject:
        raise ValueError("an array must be writeable, and hold numbers")
    page_bytes = array[0].nbytes
    # The stride of a single block is never used, and NumPy may say anything.
    stride_bytes = array.strides[0] if len(array) > 1 else page_bytes
    if stride_bytes < page_bytes:
        raise ValueError("the blocks of an array must not overlap or run backwards")
    return Pages(address=array.ctypes.data, stride_bytes=stride_bytes, page_bytes=page_bytes)
