"""Promises of engines that keep files: about chunks whose pieces are packed (docs/packing.md)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kvshelf.engine import Direct, Engine, EngineConfig, FileStatus
from kvshelf.testing.memory import Blocks, Setup
from tests.harness.codec import (
    HEADER_BYTES,
    PACKED_BF16,
    PACKED_VERSION,
    ChunkHeader,
    bad_pieces,
    checksum,
    decode,
    encode,
    payload_of,
    stored_pieces,
)
from tests.harness.taken_names import TakenNameTests

OK, NOT_FOUND = FileStatus.OK, FileStatus.NOT_FOUND
FOREIGN, CORRUPT = FileStatus.FOREIGN, FileStatus.CORRUPT

PIECE_BYTES = 65_536
PAGES = (8192, 4096, 10_000)
# 133,728 bytes: two pieces that are packed, and one of 2,656 that is not.
IDS = [3, 1, 4, 15, 9, 2]
TARGETS = [20, 28, 21, 24, 22, 31]
# Of each field of the header, of what is reserved or unused there, and of packed pieces: their
# heads, indices, codes, numbers and escapes.
OFFSETS = [0, 8, 12, 16, 24, 32, 36, 40, 48, 52, 56, 64, 96, 98, 100, 104, 232, 280, 284]
OFFSETS += [511, 512, 528, 535, 2560, 2564, 2568, 2572, 3584, 4095]
OFFSETS += [4096, 4100, 4104, 4108, 4112, 4352, 4360, 4608, 5000, 6000, 30_000, 53_700, 53_761]


@dataclass
class Packing:
    """Engines of one root over block memory of bf16 numbers; ``engine`` packs."""

    setup: Setup
    blocks: Blocks
    config: EngineConfig
    engine: Engine

    def open(self, **changes: object) -> Engine:
        config = dataclasses.replace(self.config, **changes)  # type: ignore[arg-type]
        return self.setup.open(groups=[self.blocks.describe()], config=config)

    def store(self, index: int = 1, engine: Engine | None = None) -> Path:
        batch = self.setup.batch((index, IDS, 0))
        assert self.setup.statuses("store", batch, engine or self.engine) == [OK]
        return self.setup.root / self.setup.path(index)

    def load(self, index: int = 1, engine: Engine | None = None) -> FileStatus:
        """What a load says; if it is OK, the bytes are right."""
        wanted = self.blocks.blocks(IDS)
        others = [i for i in range(32) if i not in TARGETS]
        before = self.blocks.blocks(others)
        self.blocks.clear(TARGETS)
        batch = self.setup.batch((index, TARGETS, 0))
        (status,) = self.setup.statuses("load", batch, engine or self.engine)
        assert status is not OK or self.blocks.blocks(TARGETS) == wanted
        assert self.blocks.blocks(others) == before
        return status

    def check_refused_and_healed(self, path: Path) -> None:
        """The file is CORRUPT and removed; a new one is good."""
        removed = self.engine.stats().removed_bad
        assert self.load() is CORRUPT
        assert not path.exists()
        assert self.engine.stats().removed_bad == removed + 1
        self.store()
        assert self.load() is OK


def flip(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :]


def sealed(header: ChunkHeader, body: bytes) -> bytes:
    """The file with the right checksums of its pieces, as whoever writes it on purpose makes it."""
    codes = tuple(checksum(piece) for piece in stored_pieces(header, body))
    return encode(dataclasses.replace(header, piece_checksums=codes)) + body


class PackedTests(TakenNameTests):
    """The root is ``setup.root``."""

    @pytest.fixture
    def packing(self, setup: Setup) -> Iterator[Packing]:
        blocks = Blocks(PAGES, 32)
        blocks.fill_numbers(5)
        config = dataclasses.replace(self.config, compress=True, piece_bytes=PIECE_BYTES)
        made = Packing(setup, blocks, config, setup.engine)
        made.engine = made.open()
        yield made
        assert made.engine.close()
        assert blocks.guards_are_whole()

    def test_a_packed_file_is_what_the_format_says(self, packing: Packing) -> None:
        data = packing.store().read_bytes()
        header = decode(data)
        payload = b"".join(packing.blocks.blocks(IDS))
        assert (header.version, header.packing) == (PACKED_VERSION, PACKED_BF16)
        assert header.piece_bytes == PIECE_BYTES
        assert [a < b for a, b in zip(header.stored_bytes, header.plain_bytes, strict=True)] == [
            *(True, True, False),
        ]
        body = data[HEADER_BYTES:]
        assert len(data) == header.file_bytes < HEADER_BYTES + 0.85 * len(payload)
        assert bad_pieces(header, body) == []
        assert payload_of(header, body) == payload
        stats = packing.engine.stats()
        assert (stats.stored_payload_bytes, stats.stored_file_bytes) == (len(payload), len(data))
        assert packing.load() is OK

    def test_packed_and_plain_chunks_lie_beside_each_other(self, packing: Packing) -> None:
        """Whether an engine packs decides about what it stores alone."""
        plain = packing.open(compress=False)
        packing.store(1)
        packing.store(2, plain)
        versions = [
            decode((packing.setup.root / packing.setup.path(i)).read_bytes()).version
            for i in (1, 2)
        ]
        assert versions == [PACKED_VERSION, 1]
        for engine in (packing.engine, plain):
            assert [packing.load(index, engine) for index in (1, 2)] == [OK, OK]
            # Who has stored it first, and how, is all one.
            batch = packing.setup.batch((1, IDS, 0), (2, IDS, 0))
            assert packing.setup.statuses("store", batch, engine) == [OK, OK]
        assert plain.close()

    @pytest.mark.parametrize("compress", [True, False])
    @pytest.mark.parametrize("verify", [True, False])
    def test_a_part_of_a_packed_chunk(self, packing: Packing, compress: bool, verify: bool) -> None:
        packing.store()
        engine = packing.open(compress=compress, verify=verify)
        for first in range(len(IDS)):
            for count in range(1, len(IDS) - first + 1):
                wanted = packing.blocks.blocks(IDS[first : first + count])
                packing.blocks.clear(TARGETS)
                batch = packing.setup.batch((1, TARGETS[:count], first))
                assert packing.setup.statuses("load", batch, engine) == [OK]
                assert packing.blocks.blocks(TARGETS[:count]) == wanted
        batch = packing.setup.batch((1, TARGETS[:2], 5))
        assert packing.setup.statuses("load", batch, engine) == [NOT_FOUND]
        assert engine.close()

    def test_what_does_not_shrink_is_stored_as_it_is(self, packing: Packing) -> None:
        """As it is without packing, for engines that know the first version alone."""
        packing.blocks.randomize(3)
        plain = packing.open(compress=False)
        one = packing.store(1).read_bytes()
        path = packing.store(2, plain)
        assert one[HEADER_BYTES:] == path.read_bytes()[HEADER_BYTES:]
        assert decode(one).version == 1
        assert packing.load() is OK
        assert plain.close()

    def test_one_piece_that_does_not_shrink(self, packing: Packing) -> None:
        rng = np.random.default_rng(1)
        for layer, size in zip(packing.blocks.layers, PAGES, strict=True):
            layer[IDS[:3], :size] = rng.integers(0, 256, (3, size), dtype=np.uint8)
        header = decode(packing.store().read_bytes())
        assert header.stored_bytes[0] == PIECE_BYTES > header.stored_bytes[1]
        assert packing.load() is OK

    @pytest.mark.parametrize("offset", OFFSETS)
    def test_a_flipped_bit_of_a_packed_file(self, packing: Packing, offset: int) -> None:
        path = packing.store()
        path.write_bytes(flip(path.read_bytes(), offset))
        packing.check_refused_and_healed(path)

    @pytest.mark.parametrize("size", [0, 100, 4096, 8192, 57_343, 57_344, -4096, -1, 1, 4096])
    def test_a_packed_file_of_another_size(self, packing: Packing, size: int) -> None:
        path = packing.store()
        longer = size in (1, 4096)
        os.truncate(path, path.stat().st_size + size if size < 0 or longer else size)
        packing.check_refused_and_healed(path)

    @pytest.mark.parametrize(("begin", "end"), [(0, 4096), (4096, 8192), (20_480, 24_576)])
    def test_zeros_where_bytes_of_a_packed_file_were(
        self, packing: Packing, begin: int, end: int
    ) -> None:
        path = packing.store()
        data = path.read_bytes()
        path.write_bytes(data[:begin] + bytes(end - begin) + data[end:])
        packing.check_refused_and_healed(path)

    def test_packed_pieces_that_changed_places(self, packing: Packing) -> None:
        path = packing.store()
        data = path.read_bytes()
        header = decode(data)
        ends = [HEADER_BYTES + sum(map(_padded, header.stored_bytes[:i])) for i in range(3)]
        first, second = data[ends[0] : ends[1]], data[ends[1] : ends[2]]
        assert len(first) == len(second)
        path.write_bytes(data[: ends[0]] + second + first + data[ends[2] :])
        packing.check_refused_and_healed(path)

    @pytest.mark.parametrize("offset", [0, 4, 5, 6, 8, 12, 260, 300, 320])
    def test_a_malformed_piece_under_its_right_checksum(
        self, packing: Packing, offset: int
    ) -> None:
        """The head or the index of the first piece says what cannot be."""
        path = packing.store()
        data = path.read_bytes()
        path.write_bytes(sealed(decode(data), flip(data[HEADER_BYTES:], offset)))
        packing.check_refused_and_healed(path)

    @pytest.mark.parametrize("wrong", [256, 512, 49_152, PIECE_BYTES - 256])
    def test_a_packed_piece_of_another_length(self, packing: Packing, wrong: int) -> None:
        path = packing.store()
        data = path.read_bytes()
        header = decode(data)
        body = data[HEADER_BYTES:].ljust(PIECE_BYTES * 3, b"\0")
        changed = dataclasses.replace(header, stored_bytes=(wrong, *header.stored_bytes[1:]))
        path.write_bytes(sealed(changed, body[: changed.file_bytes - HEADER_BYTES]))
        packing.check_refused_and_healed(path)

    def test_damage_in_a_packed_piece_that_is_not_wanted_does_not_matter(
        self, packing: Packing
    ) -> None:
        path = packing.store()
        path.write_bytes(flip(path.read_bytes(), 4096 + 10_000))
        wanted = packing.blocks.blocks(IDS[4:])
        batch = packing.setup.batch((1, [20, 21], 4))
        assert packing.setup.statuses("load", batch, packing.engine) == [OK]
        assert packing.blocks.blocks([20, 21]) == wanted
        assert packing.load() is CORRUPT

    @pytest.mark.parametrize(
        "change",
        [
            lambda header: dataclasses.replace(header, version=3),
            lambda header: dataclasses.replace(header, version=2**32 - 1),
            lambda header: dataclasses.replace(header, packing=2),
        ],
        ids=["version 3", "version 2^32 - 1", "packing 2"],
    )
    def test_a_chunk_of_a_later_version_is_left_alone(
        self, packing: Packing, change: Callable[[ChunkHeader], ChunkHeader]
    ) -> None:
        """It is a miss, and it stays: those who stored it can read it."""
        path = packing.store()
        data = path.read_bytes()
        later = encode(change(decode(data))) + data[HEADER_BYTES:]
        path.write_bytes(later)
        plain = packing.open(compress=False)
        for engine in (packing.engine, plain):
            assert packing.load(engine=engine) is FOREIGN
            batch = packing.setup.batch((1, IDS, 0))
            assert packing.setup.statuses("store", batch, engine) == [FOREIGN]
            assert engine.stats().removed_bad == 0
            assert path.read_bytes() == later
            assert packing.setup.statuses("lookup", [packing.setup.path(1)], engine) == [OK]
        assert list((packing.setup.root / "ns" / "tmp").iterdir()) == []
        assert plain.close()

    @pytest.mark.parametrize("direct", [Direct.AUTO, Direct.ON])
    def test_direct_io_packs_the_same_bytes(self, packing: Packing, direct: Direct) -> None:
        try:
            other = packing.open(direct=direct)
        except OSError as error:
            pytest.skip(f"O_DIRECT does not work here: {error}")
        files = [packing.store(1).read_bytes(), packing.store(2, other).read_bytes()]
        assert files[0][HEADER_BYTES:] == files[1][HEADER_BYTES:]
        for engine in (packing.engine, other):
            assert [packing.load(index, engine) for index in (1, 2)] == [OK, OK]
        assert other.close()

    def test_packed_chunks_with_tags(self, packing: Packing) -> None:
        keyed = packing.open(auth_key=b"a secret of more than thirty-two bytes")
        path = packing.store(engine=keyed)
        data = path.read_bytes()
        assert decode(data).version == PACKED_VERSION
        assert len(decode(data).piece_tags) == 3
        assert packing.load(engine=keyed) is OK
        for offset in (512, 2560, 4096, 4352, 40_000, 70_000):
            path.write_bytes(flip(data, offset))
            assert packing.load(engine=keyed) is CORRUPT
            assert not path.exists()
        assert keyed.close()


def _padded(size: int) -> int:
    return -(-size // 4096) * 4096
