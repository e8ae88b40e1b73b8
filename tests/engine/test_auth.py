"""Chunks that carry tags: stored, loaded, and refused to everybody without the key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvshelf import Chunk, Shelf, make_key
from kvshelf.config import Settings
from kvshelf.disk.auth import key_id
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import list_namespaces
from kvshelf.engine import EngineConfig, FileStatus
from kvshelf.errors import ConfigError
from tests.harness.codec import GMAC, HEADER_BYTES, decode
from tests.vectors.make import gmac, sealed

SECRET = b"a secret of more than thirty-two bytes"
OTHERS = pytest.mark.parametrize("other", [b"", SECRET[:-1] + b"x"], ids=["no key", "other key"])
CONFIG = EngineConfig(io_threads=2, lookup_threads=1, piece_bytes=8192, step_bytes=4096)
IDENTITY = Identity({"model": "m"})
KEY = make_key(bytes(range(32)), 0)
CHUNK = Chunk(KEY, [3, 1, 6])


def blocks(seed: int | None) -> np.ndarray:
    if seed is None:
        return np.zeros((8, 9000), dtype=np.uint8)
    return np.random.default_rng(seed).integers(0, 256, (8, 9000), dtype=np.uint8)


def shelf(root: Path, memory: np.ndarray, secret: bytes, *, write_behind: bool = True) -> Shelf:
    config = replace(CONFIG, auth_key=secret, write_behind=write_behind)
    return Shelf.of_arrays(root, IDENTITY, memory, config=config)


def the_file(root: Path) -> Path:
    (path,) = root.glob("m-*/r0/*/*.kv")
    return path


@pytest.fixture(params=[True, False], ids=["write-behind", "write-through"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with shelf(tmp_path / "shelf", blocks(1), SECRET, write_behind=request.param) as writer:
        assert writer.store([CHUNK]) == [FileStatus.OK]
    return tmp_path / "shelf"


def test_who_has_the_key_loads(stored: Path) -> None:
    memory = blocks(None)
    with shelf(stored, memory, SECRET) as reader:
        assert reader.load([CHUNK]) == [FileStatus.OK]
        np.testing.assert_array_equal(memory[[3, 1, 6]], blocks(1)[[3, 1, 6]])
        # A part: the last block alone.
        memory[:] = 0
        assert reader.load([Chunk(KEY, [5], first_block=2)]) == [FileStatus.OK]
        np.testing.assert_array_equal(memory[5], blocks(1)[6])


def test_tags_are_those_of_the_page(stored: Path) -> None:
    data = the_file(stored).read_bytes()
    page, header = data[:HEADER_BYTES], decode(data)
    assert header.authentication == GMAC and not header.piece_checksums
    payload = data[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
    size = header.piece_bytes
    assert list(header.piece_tags) == [
        gmac(SECRET, header.salt, i, payload[i * size : (i + 1) * size])
        for i in range(-(-len(payload) // size))
    ]
    blank = page[:16] + bytes(8) + page[24:264] + bytes(16) + page[280:]
    assert page[264:280] == gmac(SECRET, header.salt, 2**32 - 1, blank)


def test_every_file_has_a_salt_of_its_own(tmp_path: Path) -> None:
    keys = [make_key(bytes([i]) * 32, 0) for i in range(20)]
    with shelf(tmp_path, blocks(1), SECRET) as writer:
        writer.store([Chunk(key, [0]) for key in keys])
    salts = {decode(path.read_bytes()).salt for path in tmp_path.glob("m-*/r0/*/*.kv")}
    assert len(salts) == len(keys)


@OTHERS
def test_others_do_not_find_it_and_leave_it_alone(other: bytes, stored: Path) -> None:
    with shelf(stored, blocks(None), other) as reader:
        assert reader.load([CHUNK]) == [FileStatus.NOT_FOUND]
    with shelf(stored, blocks(None), SECRET) as reader:
        assert reader.load([CHUNK]) == [FileStatus.OK]


@OTHERS
def test_a_file_put_there_by_others_is_foreign(other: bytes, stored: Path, tmp_path: Path) -> None:
    # By somebody who knows the identity, the key's name included, and makes the checksum right.
    with shelf(tmp_path / "theirs", blocks(2), other) as writer:
        writer.store([CHUNK])
    data = bytearray(the_file(tmp_path / "theirs").read_bytes())
    data[64:96] = IDENTITY.with_field("auth_key", key_id(SECRET)).digest
    mine = the_file(stored)
    mine.write_bytes(sealed(data[:HEADER_BYTES]) + bytes(data[HEADER_BYTES:]))
    memory = blocks(None)
    with shelf(stored, memory, SECRET) as reader:
        assert reader.load([CHUNK]) == [FileStatus.FOREIGN]
    assert not memory.any()
    assert not mine.exists()


def test_a_flipped_bit_is_corrupt(stored: Path) -> None:
    path = the_file(stored)
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 20_000] ^= 1
    path.write_bytes(data)
    with shelf(stored, blocks(None), SECRET) as reader:
        assert reader.load([Chunk(KEY, [0])]) == [FileStatus.OK]  # its pieces are whole
        assert reader.load([CHUNK]) == [FileStatus.CORRUPT]


def test_the_name_of_the_key_is_in_the_identity(stored: Path) -> None:
    (entry,) = list_namespaces(stored)
    assert entry.identity is not None
    assert entry.identity.fields == {"model": "m", "auth_key": key_id(SECRET)}


def test_the_key_is_not_printed() -> None:
    assert "secret" not in repr(replace(CONFIG, auth_key=SECRET))


def test_a_setting_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET + b"\n")
    given = {"shared_storage_path": "/shelf", "auth_key_file": str(path)}
    assert EngineConfig.from_settings(Settings.from_mapping(given)).auth_key == SECRET
    path.unlink()
    with pytest.raises(ConfigError, match="auth_key_file"):
        EngineConfig.from_settings(Settings.from_mapping(given))


def test_more_pieces_than_tags_are_refused(tmp_path: Path) -> None:
    memory = np.zeros((300, 8192), dtype=np.uint8)
    with shelf(tmp_path, memory, SECRET) as writer:
        with pytest.raises(ValueError, match="224 pieces"):
            writer.store([Chunk(KEY, range(225))])
        assert writer.store([Chunk(KEY, range(224))]) == [FileStatus.OK]
        assert writer.load([Chunk(KEY, range(224))]) == [FileStatus.OK]
