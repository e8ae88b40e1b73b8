"""Promises of engines that keep files: every kind of damage is a miss, and heals."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from kvshelf.engine import Direct, Durability, FileStatus
from kvshelf.testing.engines import EngineTests
from kvshelf.testing.memory import Blocks, Setup

OK, NOT_FOUND, FOREIGN, CORRUPT = (
    FileStatus.OK,
    FileStatus.NOT_FOUND,
    FileStatus.FOREIGN,
    FileStatus.CORRUPT,
)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


class FileEngineTests(EngineTests):
    """Adds what can only be seen in files. The root is ``setup.root``."""

    def stored(self, setup: Setup, index: int = 1) -> Path:
        assert setup.statuses("store", setup.batch((index, [1, 2, 3], 0))) == [OK]
        return setup.root / setup.path(index)

    @pytest.mark.parametrize("size", [0, 1, 100, 4095, 4096, 8192, 20_000, -4096, -1])
    def test_a_truncated_file(self, setup: Setup, size: int) -> None:
        path = self.stored(setup)
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)
        self.check_refused_and_healed(setup, path, CORRUPT)

    @pytest.mark.parametrize(
        "offset",
        [0, 8, 16, 24, 32, 40, 48, 56, 64, 96, 104, 232, 512, 2000, 4095, 4096, 9000, 43_000],
    )
    def test_a_flipped_bit(self, setup: Setup, offset: int) -> None:
        path = self.stored(setup)
        flip(path, offset)
        self.check_refused_and_healed(setup, path, CORRUPT)

    def test_a_zeroed_header(self, setup: Setup) -> None:
        path = self.stored(setup)
        with path.open("r+b") as file:
            file.write(bytes(4096))
        self.check_refused_and_healed(setup, path, CORRUPT)

    def test_an_appended_byte(self, setup: Setup) -> None:
        path = self.stored(setup)
        with path.open("ab") as file:
            file.write(b"x")
        self.check_refused_and_healed(setup, path, CORRUPT)

    def test_another_keys_file(self, setup: Setup) -> None:
        path, other = self.stored(setup, 1), self.stored(setup, 2)
        path.unlink()
        path.write_bytes(other.read_bytes())
        self.check_refused_and_healed(setup, path, FOREIGN)

    @pytest.mark.parametrize("change", [{"namespace": bytes(32)}, {"rank": 1}])
    def test_another_namespace_or_rank(self, setup: Setup, change: dict[str, object]) -> None:
        path = self.stored(setup)
        other = setup.open(**change)
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0)), other) == [FOREIGN]
        other.close()
        assert not path.exists()

    def test_another_geometry_of_equal_size(self, setup: Setup) -> None:
        path = self.stored(setup)
        blocks = Blocks((1000, 4096, 8192), 32)  # the same bytes a block, in another order
        other = setup.open(groups=[blocks.describe()])
        before = blocks.blocks(range(32))
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0)), other) == [FOREIGN]
        other.close()
        assert blocks.blocks(range(32)) == before
        assert not path.exists()

    @pytest.mark.parametrize("what", ["directory", "fifo", "link to a file", "link to itself"])
    def test_something_else_under_the_name(self, setup: Setup, what: str) -> None:
        path = self.stored(setup)
        moved = path.with_suffix(".moved")
        path.rename(moved)
        if what == "directory":
            path.mkdir()
        elif what == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(moved if what == "link to a file" else path)
        before = setup.memory[0].blocks(range(32))
        (status,) = setup.statuses("load", setup.batch((1, [20, 21, 22], 0)))
        assert status in (CORRUPT, NOT_FOUND, FileStatus.IO_ERROR)
        assert setup.memory[0].blocks(range(32)) == before
        assert moved.exists()
        assert setup.statuses("lookup", [setup.path(1)]) != [OK]

    def test_a_folder_that_is_a_link_is_not_followed(self, setup: Setup) -> None:
        path = self.stored(setup)
        outside = setup.root / "outside"
        path.parent.rename(outside)
        path.parent.symlink_to(outside, target_is_directory=True)
        (status,) = setup.statuses("load", setup.batch((1, [20, 21, 22], 0)))
        assert status is not OK
        (status,) = setup.statuses("store", setup.batch((9, [1], 0)))
        assert status is not OK
        assert [p.name for p in outside.iterdir()] == [path.name]

    def test_damage_in_a_piece_that_is_not_wanted_does_not_matter(self, setup: Setup) -> None:
        path = self.stored(setup)
        flip(path, path.stat().st_size - 4097)  # in the last piece
        wanted = setup.memory[0].block(1)
        assert setup.statuses("load", setup.batch((1, [20], 0))) == [OK]
        assert setup.memory[0].block(20) == wanted

    def test_bad_files_stay_where_they_may_not_be_removed(self, setup: Setup) -> None:
        path = self.stored(setup)
        flip(path, 5000)
        keeping = setup.open(config=dataclasses.replace(self.config, remove_bad=False))
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0)), keeping) == [CORRUPT]
        keeping.close()
        assert path.exists()

    def test_no_temp_file_is_left(self, setup: Setup) -> None:
        self.stored(setup)
        setup.statuses("store", setup.batch((1, [1, 2, 3], 0)))
        assert list((setup.root / "ns" / "tmp").iterdir()) == []

    def test_touch_renews_old_access_times_only(self, setup: Setup) -> None:
        old, young = self.stored(setup, 1), self.stored(setup, 2)
        now = time.time()
        os.utime(old, (now - 10_000, now - 20_000))
        os.utime(young, (now - 10, now - 20_000))
        setup.engine.touch([setup.path(1), setup.path(2)])
        assert setup.engine.drain(10)
        assert old.stat().st_atime > now - 60
        assert abs(young.stat().st_atime - (now - 10)) < 1
        assert abs(old.stat().st_mtime - (now - 20_000)) < 1

    @pytest.mark.parametrize("durability", list(Durability))
    def test_every_durability_stores(self, setup: Setup, durability: Durability) -> None:
        other = setup.open(config=dataclasses.replace(self.config, durability=durability))
        assert setup.statuses("store", setup.batch((1, [1, 2], 0)), other) == [OK]
        other.close()
        assert setup.statuses("load", setup.batch((1, [20, 21], 0))) == [OK]

    @pytest.mark.parametrize("direct", [Direct.AUTO, Direct.ON])
    def test_direct_io_moves_the_same_bytes(self, setup: Setup, direct: Direct) -> None:
        config = dataclasses.replace(self.config, direct=direct)
        try:
            other = setup.open(config=config)
        except OSError as error:
            pytest.skip(f"O_DIRECT does not work here: {error}")
        wanted = setup.memory[0].blocks([1, 2, 3])
        assert setup.statuses("store", setup.batch((1, [1, 2, 3], 0)), other) == [OK]
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0)), other) == [OK]
        other.close()
        assert setup.memory[0].blocks([20, 21, 22]) == wanted
        assert setup.statuses("load", setup.batch((1, [25, 26], 1))) == [OK]
        assert setup.memory[0].blocks([25, 26]) == wanted[1:]

    def check_refused_and_healed(self, setup: Setup, path: Path, status: FileStatus) -> None:
        """The file is refused and removed, other memory untouched; a new one is good."""
        blocks = setup.memory[0]
        wanted, before = blocks.blocks([1, 2, 3]), blocks.blocks(range(4, 20))
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0))) == [status]
        assert blocks.blocks(range(4, 20)) == before
        assert not path.exists()
        assert setup.statuses("store", setup.batch((1, [1, 2, 3], 0))) == [OK]
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0))) == [OK]
        assert blocks.blocks([20, 21, 22]) == wanted
