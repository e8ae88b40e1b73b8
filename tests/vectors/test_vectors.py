"""The test vectors, read by the Python codec and by the native engine. C++: vectors_test.cpp."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf.engine import BatchBuilder, Direct, EngineConfig, FileStatus, GroupMemory, Pages, Phase
from kvshelf.engine.native import NativeEngine
from kvshelf.errors import ChunkFormatError
from tests.harness.codec import (
    GMAC,
    HEADER_BYTES,
    NOT_AUTHENTICATED,
    ChunkHeader,
    bad_pieces,
    checksum,
    decode,
    geometry_digest,
    payload_of,
    stored_pieces,
)
from tests.vectors.make import FIELDS, files, gmac, write
from tests.vectors.pieces import crc64, noise

FOLDER = Path(__file__).parent
CASES: list[dict[str, Any]] = json.loads((FOLDER / "vectors.json").read_text())
# More blocks than any vector has, in an order of their own.
BLOCK_IDS = np.array([6, 1, 4, 0, 7, 2], dtype=np.int32)


def judge(data: bytes, case: dict[str, Any]) -> tuple[str, bytes]:
    """The reader of docs/format.md: a status and, if it is OK, the wanted payload."""
    try:
        header = decode(data)
    except ChunkFormatError:
        return "CORRUPT", b""
    identity = (header.namespace.hex(), header.key.hex(), header.rank, header.block_bytes)
    wanted = (case["namespace"], case["key"], case["rank"], case["block_bytes"])
    geometry = geometry_digest(case["page_bytes"])
    scheme = GMAC if case["auth_key"] else NOT_AUTHENTICATED
    if (
        not header.is_known
        or header.authentication != scheme
        or identity != wanted
        or header.geometry != geometry
    ):
        return "FOREIGN", b""
    if len(data) != header.file_bytes:
        return "CORRUPT", b""
    first = case["first_block"] - header.first_block
    if first < 0 or first + case["block_count"] > header.block_count:
        return "NOT_FOUND", b""
    begin, end = (at * header.block_bytes for at in (first, first + case["block_count"]))
    pieces = range(begin // header.piece_bytes, -(-end // header.piece_bytes))
    body = data[HEADER_BYTES:]
    secret = bytes.fromhex(case["auth_key"])
    if secret and not header_is_authentic(data[:HEADER_BYTES], header, secret):
        return "FOREIGN", b""
    bad = forged_pieces(header, body, secret) if secret else bad_pieces(header, body)
    if set(pieces) & set(bad):
        return "CORRUPT", b""
    try:
        return "OK", payload_of(header, body)[begin:end]
    except ChunkFormatError:
        return "CORRUPT", b""


def header_is_authentic(page: bytes, header: ChunkHeader, secret: bytes) -> bool:
    blank = page[:16] + bytes(8) + page[24:264] + bytes(16) + page[280:]
    return gmac(secret, header.salt, 2**32 - 1, blank) == page[264:280]


def forged_pieces(header: ChunkHeader, body: bytes, secret: bytes) -> list[int]:
    pieces = zip(stored_pieces(header, body), header.piece_tags, strict=True)
    return [
        index
        for index, (piece, tag) in enumerate(pieces)
        if gmac(secret, header.salt, index, bytes(piece)) != tag
    ]


def named(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


@named([case for case in CASES if case["file"] != "absent.chunk"])
def test_the_codec_reads_a_vector(case: dict[str, Any]) -> None:
    status, payload = judge((FOLDER / case["file"]).read_bytes(), case)
    assert status == case["status"]
    if status == "OK":
        assert hashlib.sha256(payload).hexdigest() == case["payload_sha256"]


@pytest.mark.parametrize("direct", [Direct.OFF, Direct.AUTO])
@named(CASES)
def test_the_native_engine_reads_a_vector(
    case: dict[str, Any], direct: Direct, tmp_path: Path
) -> None:
    source = FOLDER / case["file"]
    if source.exists():
        shutil.copy(source, tmp_path)
    layers = [np.full((8, size), 0xEE, dtype=np.uint8) for size in case["page_bytes"]]
    pages = tuple(Pages(a.ctypes.data, a.strides[0], a.shape[1]) for a in layers)
    engine = NativeEngine(
        tmp_path,
        [GroupMemory(pages, num_blocks=8)],
        EngineConfig(
            io_threads=1,
            lookup_threads=1,
            step_bytes=4096,
            direct=direct,
            auth_key=bytes.fromhex(case["auth_key"]),
        ),
        namespace=bytes.fromhex(case["namespace"]),
        rank=case["rank"],
    )
    ids = BLOCK_IDS[: case["block_count"]]
    builder = BatchBuilder()
    builder.add(case["file"], bytes.fromhex(case["key"]), 0, case["first_block"], ids)
    engine.submit_load(1, builder.build())
    assert engine.wait([1], Phase.FINISHED, 10)
    (report,) = engine.poll()
    assert engine.close()
    assert report.statuses == (FileStatus[case["status"]],)
    if report.statuses[0] is FileStatus.OK:
        payload = b"".join(layer[i].tobytes() for i in ids for layer in layers)
        assert hashlib.sha256(payload).hexdigest() == case["payload_sha256"]
        assert report.payload_bytes == len(payload)


def test_the_vectors_are_what_the_generator_makes(tmp_path: Path) -> None:
    write(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {name: (FOLDER / name).read_bytes() for name in made}
    assert made == kept
    assert {path.stem for path in FOLDER.glob("*.chunk")} == set(files())
    assert sum(map(len, made.values())) < 500_000


def test_the_generator_knows_the_checksum() -> None:
    assert crc64(b"123456789") == 0xAE8B14860A799888
    assert crc64(noise("checksum", 5001)) == checksum(noise("checksum", 5001))


def test_every_number_of_the_header_has_a_place_of_its_own() -> None:
    taken = [at for offset, width in FIELDS.values() for at in range(offset, offset + width)]
    assert len(taken) == len(set(taken))
