"""The header codec: round trips, any damage is refused, and the native core agrees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshelf import ChunkFormatError, _native
from kvshelf.engine import FileStatus
from tests.harness.codec import (
    HEADER_BYTES,
    PACKED_BF16,
    PACKED_VERSION,
    ChunkHeader,
    bad_pieces,
    checksum,
    decode,
    encode,
    file_bytes,
    geometry_digest,
    piece_checksums,
    seal,
)

HEADER = ChunkHeader(
    key=b"k" * 36,
    namespace=bytes(range(32)),
    rank=3,
    geometry=geometry_digest([4096, 8192]),
    block_bytes=12288,
    first_block=1,
    block_count=3,
    piece_bytes=8192,
    piece_checksums=(1, 2**64 - 1, 3, 4, 5),
)


@st.composite
def headers(draw: st.DrawFn) -> ChunkHeader:
    piece_bytes = draw(st.integers(1, 64)) * 4096
    block_bytes = draw(st.integers(1, 100_000))
    block_count = draw(st.integers(1, 10))
    count = -(-block_bytes * block_count // piece_bytes)
    return ChunkHeader(
        key=draw(st.binary(min_size=12, max_size=128)),
        namespace=draw(st.binary(min_size=32, max_size=32)),
        rank=draw(st.integers(0, 2**32 - 1)),
        geometry=draw(st.integers(0, 2**64 - 1)),
        block_bytes=block_bytes,
        first_block=draw(st.integers(0, 2**32 - 11)),  # the last block's index must fit
        block_count=block_count,
        piece_bytes=piece_bytes,
        piece_checksums=tuple(
            draw(st.lists(st.integers(0, 2**64 - 1), min_size=count, max_size=count))
        ),
    )


# The same chunk with packed pieces.
PACKED = dataclasses.replace(
    HEADER,
    version=PACKED_VERSION,
    packing=PACKED_BF16,
    stored_bytes=(5000, 8192, 1, 4096, 4095),
)


@st.composite
def packed_headers(draw: st.DrawFn) -> ChunkHeader:
    header = draw(headers().filter(lambda header: len(header.piece_checksums) <= 256))
    sizes = tuple(draw(st.integers(1, size)) for size in header.plain_bytes)
    return dataclasses.replace(
        header, version=PACKED_VERSION, packing=PACKED_BF16, stored_bytes=sizes
    )


@given(st.one_of(headers(), packed_headers()))
@settings(max_examples=60)
def test_round_trip(header: ChunkHeader) -> None:
    page = encode(header)
    assert len(page) == HEADER_BYTES
    assert decode(page) == header


@given(st.sampled_from([HEADER, PACKED]), st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_any_changed_byte_is_refused(header: ChunkHeader, offset: int, change: int) -> None:
    page = bytearray(encode(header))
    page[offset] ^= change
    with pytest.raises(ChunkFormatError):
        decode(bytes(page))


def test_check_value_of_the_catalogue() -> None:
    assert checksum(b"123456789") == 0xAE8B14860A799888
    assert _native.crc64(b"123456789") == 0xAE8B14860A799888


@given(st.binary(max_size=5000), st.integers(0, 5000))
@settings(max_examples=100)
def test_the_native_checksum_agrees_also_in_parts(data: bytes, cut: int) -> None:
    assert _native.crc64(data) == checksum(data)
    assert _native.crc64(data[cut:], _native.crc64(data[:cut])) == checksum(data)


def test_the_native_core_writes_the_same_header() -> None:
    page = _native.encode_header(
        HEADER.key,
        HEADER.namespace,
        HEADER.rank,
        HEADER.geometry,
        HEADER.block_bytes,
        HEADER.first_block,
        HEADER.block_count,
        HEADER.piece_bytes,
        list(HEADER.piece_checksums),
    )
    assert page == encode(HEADER)


NUMBERS = {
    "version": (8, 4),
    "header_bytes": (12, 4),
    "payload_bytes": (24, 8),
    "piece_bytes": (32, 4),
    "piece_count": (36, 4),
    "block_bytes": (40, 8),
    "first_block": (48, 4),
    "block_count": (52, 4),
    "geometry": (56, 8),
    "key_bytes": (96, 2),
    "reserved": (98, 2),
    "rank": (100, 4),
    "packing": (280, 4),
    "a stored size": (2564, 4),
    "the last stored size": (2576, 4),
}


def status_of(page: bytes, size: int) -> FileStatus:
    """What a reader makes of the page who wants HEADER, in a file of so many bytes."""
    try:
        header = decode(page)
    except ChunkFormatError:
        return FileStatus.CORRUPT
    wanted = dataclasses.replace(HEADER, piece_checksums=header.piece_checksums)
    if not header.is_known:
        return FileStatus.FOREIGN
    identity = (
        "key",
        "namespace",
        "rank",
        "geometry",
        "block_bytes",
        "authentication",
    )
    if any(getattr(header, name) != getattr(wanted, name) for name in identity):
        return FileStatus.FOREIGN
    if header.file_bytes != size:
        return FileStatus.CORRUPT
    return FileStatus.OK if header.first_block == HEADER.first_block else FileStatus.NOT_FOUND


@given(
    st.sampled_from([HEADER, PACKED]),
    st.sampled_from(sorted(NUMBERS)),
    st.one_of(
        st.integers(-3, 3),
        st.integers(0, 2**64 - 1),
        st.integers(0, 64).map(lambda bit: 1 << bit),
    ),
    st.booleans(),
)
@settings(max_examples=500)
def test_both_codecs_judge_a_changed_number_alike(
    header: ChunkHeader, name: str, value: int, add: bool
) -> None:
    offset, width = NUMBERS[name]
    page = bytearray(encode(header))
    old = int.from_bytes(page[offset : offset + width], "little")
    new = (value + old if add else value) % 2 ** (8 * width)
    page[offset : offset + width] = new.to_bytes(width, "little")
    native = _native.check_header(
        seal(page),
        header.file_bytes,
        HEADER.key,
        HEADER.namespace,
        HEADER.rank,
        HEADER.geometry,
        HEADER.block_bytes,
        HEADER.first_block,
        HEADER.block_count,
    )
    expected = status_of(seal(page), header.file_bytes)
    if name in ("block_bytes", "key_bytes") and new != old:
        # Part of what a reader wants, and of what must agree: it asks for the former first.
        assert expected in (FileStatus.CORRUPT, FileStatus.FOREIGN)
        expected = FileStatus.FOREIGN
    assert FileStatus(native) is expected


@given(headers(), st.integers(0, HEADER_BYTES - 1), st.integers(0, 255))
@settings(max_examples=100)
def test_the_native_core_says_which_chunk_a_header_names(
    header: ChunkHeader, offset: int, change: int
) -> None:
    page = bytearray(encode(header))
    page[offset] ^= change
    names = None if change else (header.key, header.namespace, header.rank)
    assert _native.read_header(bytes(page)) == names


def test_the_native_core_names_no_chunk_by_less_than_a_header() -> None:
    long_key = bytearray(encode(HEADER))
    long_key[96:98] = (129).to_bytes(2, "little")
    for page in (b"", encode(HEADER)[:-1], seal(long_key)):
        assert _native.read_header(page) is None


@pytest.mark.parametrize(
    "change",
    [{"key": b"short"}, {"key": b"k" * 129}, {"namespace": b"x"}, {"rank": -1}, {"rank": 2**32}],
)
def test_fields_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"fit|bytes"):
        encode(dataclasses.replace(HEADER, **change))


def test_contradicting_sizes_are_refused() -> None:
    short = dataclasses.replace(HEADER, piece_checksums=(1, 2))
    with pytest.raises(ChunkFormatError, match="contradict"):
        decode(encode(short))


def test_bad_pieces_are_named() -> None:
    payload = np.random.default_rng(1).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    header = dataclasses.replace(
        HEADER,
        block_bytes=20_000,
        block_count=1,
        piece_checksums=piece_checksums(payload, HEADER.piece_bytes),
    )
    assert bad_pieces(header, payload) == []
    damaged = bytearray(payload)
    damaged[9000] ^= 1
    assert bad_pieces(header, damaged) == [1]
    assert bad_pieces(header, payload[:-1]) == [2]
    assert bad_pieces(header, payload[:8192]) == [1, 2]
    assert bad_pieces(header, b"") == [0, 1, 2]
    assert bad_pieces(header, payload + bytes(480)) == []


def test_another_version_is_the_callers_to_refuse() -> None:
    later = dataclasses.replace(HEADER, version=2, piece_checksums=(1,))
    assert decode(encode(later)) == later
    page = encode(dataclasses.replace(HEADER, version=2, piece_checksums=(7,) * 448))
    assert len(decode(page).piece_checksums) == 448


@pytest.mark.parametrize("size", [0, 1, 4095])
def test_less_than_a_page_is_refused(size: int) -> None:
    with pytest.raises(ChunkFormatError, match="bytes"):
        decode(encode(HEADER)[:size])


@given(st.binary(max_size=5000))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ChunkFormatError):
        decode(data)


def test_sizes_of_files() -> None:
    assert file_bytes(1) == 8192
    assert file_bytes(4096) == 8192
    assert file_bytes(4097) == 12288


def test_geometry_depends_on_order() -> None:
    assert geometry_digest([1, 2]) != geometry_digest([2, 1])
    assert geometry_digest([1, 2]) != geometry_digest([3])
