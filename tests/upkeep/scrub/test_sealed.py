"""Chunks that carry tags: judged with their key, left alone without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvshelf import Chunk, Identity, Shelf, make_key
from kvshelf.disk.layout import NAMESPACE_FILE
from kvshelf.engine import EngineConfig
from kvshelf.upkeep.scrub.findings import Kind
from kvshelf.upkeep.scrub.scrubber import Scrubber
from kvshelf.upkeep.scrub.settings import ScrubSettings
from tests.harness.codec import HEADER_BYTES

SECRET = b"a secret of more than thirty-two bytes"
FAST = ScrubSettings(megabytes_per_second=0, files_per_second=0, from_start=True)


@pytest.fixture
def chunk(tmp_path: Path) -> Path:
    """The only chunk file of a shelf with a key, in ``tmp_path``."""
    memory = np.random.default_rng(1).integers(0, 256, (4, 9000), dtype=np.uint8)
    config = EngineConfig(io_threads=1, lookup_threads=1, piece_bytes=8192, auth_key=SECRET)
    with Shelf.of_arrays(tmp_path, Identity({"model": "m"}), memory, config=config) as shelf:
        shelf.store([Chunk(make_key(bytes(32), 0), [0, 1, 2, 3])])
    (path,) = tmp_path.glob("m-*/r0/*/*.kv")
    return path


def scrub(root: Path, key: bytes) -> tuple[list[Kind], int]:
    scrubber = Scrubber(root, replace(FAST, auth_key=key))
    return [finding.kind for finding in scrubber.run()], scrubber.totals.sealed


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_with_the_key_all_is_judged(chunk: Path, tmp_path: Path) -> None:
    assert scrub(tmp_path, SECRET) == ([], 0)
    flip(chunk, HEADER_BYTES + 20_000)
    assert scrub(tmp_path, SECRET) == ([Kind.CORRUPT], 0)
    assert not chunk.exists()


@pytest.mark.parametrize("key", [b"", b"another secret of thirty-two bytes"], ids=["none", "other"])
def test_without_the_key_headers_are_judged(key: bytes, chunk: Path, tmp_path: Path) -> None:
    flip(chunk, HEADER_BYTES + 20_000)
    assert scrub(tmp_path, key) == ([Kind.SEALED], 1)
    assert chunk.exists()
    flip(chunk, 40)
    assert scrub(tmp_path, key) == ([Kind.SEALED, Kind.CORRUPT], 0)
    assert not chunk.exists()


def test_nothing_is_removed_for_want_of_a_namespace_file(chunk: Path, tmp_path: Path) -> None:
    (chunk.parents[2] / NAMESPACE_FILE).unlink()
    for key in (b"", SECRET):
        assert scrub(tmp_path, key) == ([Kind.NAMESPACE], 1)
    assert chunk.exists()


def test_a_chunk_without_tags_among_them_is_misplaced(chunk: Path, tmp_path: Path) -> None:
    from tests.vectors.make import sealed

    data = bytearray(chunk.read_bytes())
    data[98:100] = bytes(2)
    chunk.write_bytes(sealed(data[:HEADER_BYTES]) + bytes(data[HEADER_BYTES:]))
    assert scrub(tmp_path, SECRET) == ([Kind.MISPLACED], 0)
    assert not chunk.exists()
