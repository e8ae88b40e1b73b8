"""Packed pieces in Python, to judge the native core. Source: docs/packing.md.

Pure functions of bytes: no I/O, any thread. They share no code with the native core.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from kvshelf.errors import ChunkFormatError

MAGIC = b"VKP1"
ALIGNMENT = 256
GROUP_VALUES = 2048
BLOCK_VALUES = 128
ESCAPE = 15
# magic, code_bits, table_scope, table_entries, reserved, values, escapes, exponents
_HEAD = struct.Struct("<4sBBBBII240s")


def unpack_bf16(packed: bytes | bytearray | memoryview, plain_bytes: int) -> bytes:
    """The bytes of a packed piece.

    Args:
        packed: the piece as the file has it.
        plain_bytes: how many bytes it stands for.

    Raises:
        ChunkFormatError: it is no packed piece of so many bytes.
    """
    data = bytes(packed)
    if len(data) < _HEAD.size:
        raise ChunkFormatError(f"{len(data)} bytes are no packed piece")
    magic, code_bits, scope, entries, _, values, escapes, exponents = _HEAD.unpack_from(data)
    groups = -(-values // GROUP_VALUES)
    start = _HEAD.size + _aligned(4 * (groups + 1))
    end = start + groups * (GROUP_VALUES // 2 + GROUP_VALUES)
    if (
        (magic, code_bits, scope) != (MAGIC, 4, 0)
        or entries > ESCAPE
        or 2 * values != plain_bytes
        or escapes > values
        or len(data) != end + _aligned(escapes)
    ):
        raise ChunkFormatError("the sizes of a packed piece contradict each other")
    index = np.frombuffer(data, "<u4", groups + 1, _HEAD.size)
    area = np.frombuffer(data, np.uint8, end - start, start).reshape(groups, -1)
    codes = _codes(area[:, : GROUP_VALUES // 2])
    rest = area[:, GROUP_VALUES // 2 :].astype(np.uint16)
    table = np.zeros(ESCAPE + 1, np.uint16)
    table[:entries] = np.frombuffer(exponents, np.uint8, entries)
    found = table[codes]
    _place(found, codes == ESCAPE, index, np.frombuffer(data, np.uint8, escapes, end), values)
    numbers = (rest & 0x80) << 8 | found << 7 | (rest & 0x7F)
    return numbers.reshape(-1)[:values].astype("<u2").tobytes()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _codes(halves: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes in the order of the numbers: uint8[groups, 2048] of uint8[groups, 1024]."""
    blocks = halves.reshape(len(halves), -1, BLOCK_VALUES // 2)
    codes: NDArray[np.uint8] = np.concatenate([blocks & 15, blocks >> 4], axis=2)
    return codes.reshape(len(halves), GROUP_VALUES)


def _place(
    found: NDArray[np.uint16],
    escaped: NDArray[np.bool_],
    index: NDArray[np.uint32],
    listed: NDArray[np.uint8],
    values: int,
) -> None:
    """Put the listed exponents where escapes are: by bytes of codes, the lower half first."""
    before = 0
    for group in range(len(found)):
        after = int(index[group + 1])
        halves = escaped[group].reshape(-1, 2, BLOCK_VALUES // 2).transpose(0, 2, 1)
        places = np.arange(GROUP_VALUES).reshape(-1, 2, BLOCK_VALUES // 2).transpose(0, 2, 1)
        here = places[halves]
        beyond = bool((here + group * GROUP_VALUES >= values).any())
        if not before <= after <= len(listed) or len(here) != after - before or beyond:
            raise ChunkFormatError("a group has other escapes than its index says")
        found[group, here] = listed[before:after]
        before = after
    if before != len(listed):
        raise ChunkFormatError("more escapes are listed than there are")
