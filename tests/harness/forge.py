"""A chunk file with the wrong content under a right key and right checksums: for tests of audits.

Nothing but a comparison with what a model computes can find it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.harness import codec
from tests.harness.codec import HEADER_BYTES, decode, encode, file_bytes, piece_checksums


def payload_of(path: Path) -> bytes:
    """The KV bytes in a chunk file."""
    data = path.read_bytes()
    return codec.payload_of(decode(data), data[HEADER_BYTES:])


def forge(path: Path, payload: bytes) -> None:
    """Put a new file in the place of the old one: of its key, with this payload of its size.

    Raises:
        ValueError: the payload has another size.
    """
    header = decode(path.read_bytes())
    if len(payload) != header.payload_bytes:
        raise ValueError(f"{len(payload)} bytes in the place of {header.payload_bytes}")
    sealed = replace(
        header,
        version=codec.VERSION,
        packing=0,
        stored_bytes=(),
        piece_checksums=piece_checksums(payload, header.piece_bytes),
    )
    path.unlink()
    path.write_bytes((encode(sealed) + payload).ljust(file_bytes(len(payload)), b"\0"))
