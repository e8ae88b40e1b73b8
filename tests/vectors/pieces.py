"""Payloads of test vectors, packed pieces of them and checksums, by nobody else's code.

Packed pieces are as docs/packing.md says, checksums as docs/format.md does.
"""

from __future__ import annotations

import hashlib


def crc64(data: bytes) -> int:
    """CRC-64/NVME, bit by bit through a table: nobody else's code."""
    crc = 2**64 - 1
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ (2**64 - 1)


def _table_entry(index: int) -> int:
    polynomial = int(f"{0xAD93D23594C93659:064b}"[::-1], 2)  # reflected
    for _ in range(8):
        index = (index >> 1) ^ (polynomial if index & 1 else 0)
    return index


_TABLE = [_table_entry(index) for index in range(256)]


def noise(label: str, size: int) -> bytes:
    """Bytes that look random and are the same for ever."""
    blocks = (hashlib.sha256(f"{label} {i}".encode()).digest() for i in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def bf16(label: str, size: int) -> bytes:
    """Numbers as a KV cache has them: few exponents, and one number in 64 with any."""
    random = noise(label, 2 * size)
    numbers = b""
    for i in range(0, size, 2):
        a, b, c, d = random[2 * i : 2 * i + 4]
        usual = 120 - (8 - c.bit_length())
        exponent = b if d % 64 == 0 else usual
        numbers += ((a >> 7) << 15 | exponent << 7 | (a & 127)).to_bytes(2, "little")
    return numbers[:size]


def packed(piece: bytes) -> bytes:
    """A packed piece, as docs/packing.md says; the piece itself if that is not shorter."""
    numbers = [int.from_bytes(piece[i : i + 2], "little") for i in range(0, len(piece), 2)]
    exponents = [number >> 7 & 255 for number in numbers]
    counts = {each: exponents.count(each) for each in sorted(set(exponents))}
    table = sorted(counts, key=lambda each: -counts[each])[:15]
    filled = numbers + [table[0] << 7] * (-len(numbers) % 2048)
    index, groups, escapes = [0], b"", b""
    for begin in range(0, len(filled), 2048):
        group = filled[begin : begin + 2048]
        codes = b""
        for low, high in pairs(group):
            code = [
                table.index(each >> 7 & 255) if each >> 7 & 255 in table else 15
                for each in (low, high)
            ]
            codes += bytes([code[0] | code[1] << 4])
            escapes += bytes(
                each >> 7 & 255
                for each, is_escape in zip((low, high), code, strict=True)
                if is_escape == 15
            )
        groups += codes + bytes(each >> 8 & 128 | each & 127 for each in group)
        index.append(len(escapes))
    head = b"VKP1" + bytes([4, 0, len(table), 0])
    head += len(numbers).to_bytes(4, "little") + len(escapes).to_bytes(4, "little")
    places = b"".join(each.to_bytes(4, "little") for each in index)
    sections = (head + bytes(table), places, groups, escapes)
    made = b"".join(section + bytes(-len(section) % 256) for section in sections)
    return made if len(made) < len(piece) else piece


def pairs(group: list[int]) -> list[tuple[int, int]]:
    """Numbers whose codes share a byte, in the order of the bytes."""
    return [
        (group[block + i], group[block + 64 + i])
        for block in range(0, 2048, 128)
        for i in range(64)
    ]
