"""The header page of a chunk file in Python, to judge the native core. Source: docs/format.md.

Pure functions of bytes: no I/O, any thread. It shares no code with the native core, not even the
checksum: tests/vectors judges both. Sizes are in bytes; numbers in a page are little-endian and
unsigned.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import anycrc

from kvshelf.disk.keys import KEY_BYTES_MAX, KEY_BYTES_MIN
from kvshelf.errors import ChunkFormatError

MAGIC = b"KVSHELF\n"
VERSION = 1
HEADER_BYTES = 4096
PAGE_BYTES = 4096
PIECES_MAX = 448
NOT_AUTHENTICATED = 0
GMAC = 1
TAG_BYTES = 16

# magic, version, header_bytes, header_checksum, payload_bytes, piece_bytes, piece_count,
# block_bytes, first_block, block_count, geometry, namespace, key_bytes, authentication, rank, key
_FIELDS = struct.Struct("<8sIIQQIIQIIQ32sHHI128s")
_CHECKSUM_OFFSET = 16
_SALT_OFFSET = 232
_SALT_BYTES = 32
_CODES_OFFSET = 512
_CRC = anycrc.Model("CRC64-NVME")


def checksum(data: bytes | bytearray | memoryview) -> int:
    """CRC-64/NVME of contiguous bytes: 0 to 2**64 - 1, and 0 of none."""
    return int(_CRC.calc(data))


def geometry_digest(page_bytes: Sequence[int]) -> int:
    """Digest of the page sizes of one block in layer order, 0 to 2**64 - 1."""
    packed = struct.pack(f"<{len(page_bytes)}Q", *page_bytes)
    return int.from_bytes(hashlib.sha256(packed).digest()[:8], "little")


def file_bytes(payload_bytes: int) -> int:
    """Size of a chunk file with so much payload."""
    return HEADER_BYTES + -(-payload_bytes // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """The fields of a header page; those that follow from others are not repeated.

    Attributes:
        key: 12 to 128 bytes, from ``kvshelf.disk.keys``.
        namespace: 32 bytes, ``Identity.digest``.
        rank: the worker whose KV this is.
        geometry: ``geometry_digest`` of the page sizes.
        block_bytes: of one block, the sum of its pages.
        first_block: index within the chunk of the first block in the file.
        block_count: number of blocks in the file.
        piece_bytes: that one checksum covers, a multiple of 4096.
        piece_checksums: one a piece, at most 448; none in an authenticated file.
        version: of the format; 1 but in a file of another kvshelf.
        authentication: ``NOT_AUTHENTICATED`` or ``GMAC``.
        salt: 32 bytes of an authenticated file.
        piece_tags: of an authenticated file, 16 bytes each, at most 224.
    """

    key: bytes
    namespace: bytes
    rank: int
    geometry: int
    block_bytes: int
    first_block: int
    block_count: int
    piece_bytes: int
    piece_checksums: tuple[int, ...]
    version: int = VERSION
    authentication: int = NOT_AUTHENTICATED
    salt: bytes = b""
    piece_tags: tuple[bytes, ...] = ()

    @property
    def payload_bytes(self) -> int:
        return self.block_bytes * self.block_count


def encode(header: ChunkHeader) -> bytes:
    """The 4096 bytes of a header page, sealed with its checksum. Authenticated ones are for those
    who have the key to make.

    Raises:
        ValueError: a field does not fit.
    """
    if header.authentication != NOT_AUTHENTICATED:
        raise ValueError("an authenticated header cannot be made without the key")
    if not KEY_BYTES_MIN <= len(header.key) <= KEY_BYTES_MAX or len(header.namespace) != 32:
        raise ValueError("key must have 12 to 128 bytes and namespace 32")
    if len(header.piece_checksums) > PIECES_MAX:
        raise ValueError(f"more than {PIECES_MAX} pieces")
    page = bytearray(HEADER_BYTES)
    try:
        _FIELDS.pack_into(
            page,
            0,
            MAGIC,
            header.version,
            HEADER_BYTES,
            0,
            header.payload_bytes,
            header.piece_bytes,
            len(header.piece_checksums),
            header.block_bytes,
            header.first_block,
            header.block_count,
            header.geometry,
            header.namespace,
            len(header.key),
            0,
            header.rank,
            header.key,
        )
        struct.pack_into(
            f"<{len(header.piece_checksums)}Q", page, _CODES_OFFSET, *header.piece_checksums
        )
    except struct.error as error:
        raise ValueError(f"a field does not fit: {error}") from error
    return seal(page)


def seal(page: bytes | bytearray) -> bytes:
    """The page with its checksum field made right."""
    blank = bytearray(page)
    blank[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 8] = bytes(8)
    blank[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 8] = checksum(bytes(blank)).to_bytes(8, "little")
    return bytes(blank)


def decode(page: bytes) -> ChunkHeader:
    """The fields of a header page whose magic, size, checksum and own sizes are right.

    Neither the version nor tags are judged: those are for the caller.

    Raises:
        ChunkFormatError: it is no sound header.
    """
    if len(page) < HEADER_BYTES:
        raise ChunkFormatError(f"{len(page)} bytes are no header")
    page = bytes(page[:HEADER_BYTES])
    (
        magic,
        version,
        header_bytes,
        _,
        payload_bytes,
        piece_bytes,
        piece_count,
        block_bytes,
        first_block,
        block_count,
        geometry,
        namespace,
        key_bytes,
        authentication,
        rank,
        key,
    ) = _FIELDS.unpack_from(page)
    if magic != MAGIC or header_bytes != HEADER_BYTES:
        raise ChunkFormatError("not a chunk file")
    if seal(page) != page:
        raise ChunkFormatError("the header checksum is wrong")
    keyed = authentication != NOT_AUTHENTICATED
    pieces_max = PIECES_MAX // 2 if keyed else PIECES_MAX
    sizes_agree = (
        KEY_BYTES_MIN <= key_bytes <= KEY_BYTES_MAX
        and payload_bytes == block_bytes * block_count > 0
        and first_block + block_count < 2**32
        and piece_bytes > 0
        and piece_bytes % PAGE_BYTES == 0
        and piece_count == -(-payload_bytes // piece_bytes) <= pieces_max
    )
    if version == VERSION and not sizes_agree:
        raise ChunkFormatError("the sizes in the header contradict each other")
    count = min(piece_count, pieces_max)
    code = f"{TAG_BYTES}s" if keyed else "Q"
    codes = struct.unpack_from("<" + count * code, page, _CODES_OFFSET)
    return ChunkHeader(
        key=key[:key_bytes],
        namespace=namespace,
        rank=rank,
        geometry=geometry,
        block_bytes=block_bytes,
        first_block=first_block,
        block_count=block_count,
        piece_bytes=piece_bytes,
        piece_checksums=() if keyed else codes,
        version=version,
        authentication=authentication,
        salt=page[_SALT_OFFSET : _SALT_OFFSET + _SALT_BYTES] if keyed else b"",
        piece_tags=codes if keyed else (),
    )


def piece_checksums(payload: bytes | bytearray | memoryview, piece_bytes: int) -> tuple[int, ...]:
    """One checksum for each ``piece_bytes`` of a whole payload; the last piece may be shorter."""
    view = memoryview(payload)
    return tuple(
        checksum(view[start : start + piece_bytes]) for start in range(0, len(view), piece_bytes)
    )


def bad_pieces(header: ChunkHeader, payload: bytes | bytearray | memoryview) -> list[int]:
    """Indices of the pieces whose bytes are not there or have another checksum, ascending.

    Args:
        header: from ``decode``, of this version.
        payload: what follows the header page; may be short, or longer by padding.

    Raises:
        ValueError: the file is authenticated; only the native core has the key to judge it.
    """
    if header.authentication != NOT_AUTHENTICATED:
        raise ValueError("the pieces of an authenticated file are judged with its key")
    found = piece_checksums(memoryview(payload)[: header.payload_bytes], header.piece_bytes)
    return [
        index
        for index, wanted in enumerate(header.piece_checksums)
        if index >= len(found) or found[index] != wanted
    ]
