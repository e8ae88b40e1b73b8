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
from tests.harness.packing import unpack_bf16

MAGIC = b"KVSHELF\n"
VERSION = 1
PACKED_VERSION = 2
PACKED_BF16 = 1
HEADER_BYTES = 4096
PAGE_BYTES = 4096
PIECES_MAX = 448
PACKED_PIECES_MAX = 256
PACKED_PIECE_BYTES_MAX = 64 << 20
NOT_AUTHENTICATED = 0
GMAC = 1
TAG_BYTES = 16

# magic, version, header_bytes, header_checksum, payload_bytes, piece_bytes, piece_count,
# block_bytes, first_block, block_count, geometry, namespace, key_bytes, authentication, rank, key
_FIELDS = struct.Struct("<8sIIQQIIQIIQ32sHHI128s")
_CHECKSUM_OFFSET = 16
_SALT_OFFSET = 232
_SALT_BYTES = 32
_PACKING_OFFSET = 280
_CODES_OFFSET = 512
_STORED_OFFSET = 2560
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
    return HEADER_BYTES + _padded(payload_bytes)


def _padded(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


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
        version: of the format: 1, 2 if a piece is packed, others in files of another kvshelf.
        authentication: ``NOT_AUTHENTICATED`` or ``GMAC``.
        salt: 32 bytes of an authenticated file.
        piece_tags: of an authenticated file, 16 bytes each, at most 224.
        packing: of version 2: ``PACKED_BF16``.
        stored_bytes: of version 2: the length of each piece in the file.
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
    packing: int = 0
    stored_bytes: tuple[int, ...] = ()

    @property
    def payload_bytes(self) -> int:
        return self.block_bytes * self.block_count

    @property
    def plain_bytes(self) -> tuple[int, ...]:
        """Bytes of the payload in each piece."""
        starts = range(0, self.payload_bytes, self.piece_bytes)
        return tuple(min(self.piece_bytes, self.payload_bytes - start) for start in starts)

    @property
    def is_known(self) -> bool:
        """Whether docs/format.md says what the file holds."""
        packed = (self.version, self.packing) == (PACKED_VERSION, PACKED_BF16)
        return packed or self.version == VERSION

    @property
    def file_bytes(self) -> int:
        """Size of the file. REQUIRES: ``is_known``."""
        return HEADER_BYTES + sum(map(_padded, self.stored_bytes or self.plain_bytes))


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
        if header.stored_bytes:
            struct.pack_into("<I", page, _PACKING_OFFSET, header.packing)
            sizes = header.stored_bytes
            struct.pack_into(f"<{len(sizes)}I", page, _STORED_OFFSET, *sizes)
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
    packing = struct.unpack_from("<I", page, _PACKING_OFFSET)[0]
    packed = (version, packing) == (PACKED_VERSION, PACKED_BF16)
    pieces_max = (PACKED_PIECES_MAX if packed else PIECES_MAX) // (2 if keyed else 1)
    count = min(piece_count, pieces_max)
    code = f"{TAG_BYTES}s" if keyed else "Q"
    codes = struct.unpack_from("<" + count * code, page, _CODES_OFFSET)
    header = ChunkHeader(
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
        packing=packing if version == PACKED_VERSION else 0,
        stored_bytes=struct.unpack_from(f"<{count}I", page, _STORED_OFFSET) if packed else (),
    )
    sizes = (key_bytes, payload_bytes, piece_count, pieces_max)
    if header.is_known and not _sizes_agree(header, *sizes):
        raise ChunkFormatError("the sizes in the header contradict each other")
    return header


def _sizes_agree(
    header: ChunkHeader, key_bytes: int, payload_bytes: int, piece_count: int, pieces_max: int
) -> bool:
    piece_bytes, packed = header.piece_bytes, bool(header.stored_bytes)
    if not (
        KEY_BYTES_MIN <= key_bytes <= KEY_BYTES_MAX
        and payload_bytes == header.payload_bytes > 0
        and header.first_block + header.block_count < 2**32
        and piece_bytes > 0
        and piece_bytes % PAGE_BYTES == 0
        and piece_count == -(-payload_bytes // piece_bytes) <= pieces_max
    ):
        return False
    pairs = zip(header.stored_bytes, header.plain_bytes, strict=True) if packed else ()
    small = piece_bytes <= PACKED_PIECE_BYTES_MAX or not packed
    return small and all(0 < size <= plain for size, plain in pairs)


def piece_checksums(payload: bytes | bytearray | memoryview, piece_bytes: int) -> tuple[int, ...]:
    """One checksum for each ``piece_bytes`` of a whole payload; the last piece may be shorter."""
    view = memoryview(payload)
    return tuple(
        checksum(view[start : start + piece_bytes]) for start in range(0, len(view), piece_bytes)
    )


def stored_pieces(header: ChunkHeader, body: bytes | bytearray | memoryview) -> list[memoryview]:
    """Each piece as the file has it; shorter, or none, where the file ends early.

    Args:
        body: what follows the header page.
    """
    view, pieces, start = memoryview(body), [], 0
    for size in header.stored_bytes or header.plain_bytes:
        pieces.append(view[start : start + size])
        start += _padded(size)
    return pieces


def bad_pieces(header: ChunkHeader, body: bytes | bytearray | memoryview) -> list[int]:
    """Indices of the pieces whose bytes are not there or have another checksum, ascending.

    Args:
        header: from ``decode``, of a version that is known.
        body: what follows the header page; may be short, or longer by padding.

    Raises:
        ValueError: the file is authenticated; only the native core has the key to judge it.
    """
    if header.authentication != NOT_AUTHENTICATED:
        raise ValueError("the pieces of an authenticated file are judged with its key")
    sizes = header.stored_bytes or header.plain_bytes
    pieces = zip(sizes, stored_pieces(header, body), header.piece_checksums, strict=True)
    return [
        index
        for index, (size, piece, wanted) in enumerate(pieces)
        if len(piece) < size or checksum(piece) != wanted
    ]


def payload_of(header: ChunkHeader, body: bytes | bytearray | memoryview) -> bytes:
    """The KV bytes of a file whose pieces are not bad.

    Raises:
        ChunkFormatError: a packed piece cannot be unpacked.
    """
    pieces = zip(stored_pieces(header, body), header.plain_bytes, strict=True)
    return b"".join(
        unpack_bf16(piece, plain) if len(piece) < plain else bytes(piece) for piece, plain in pieces
    )
