"""What a store makes of a chunk's name that something else has."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kvshelf.engine import FileStatus
from kvshelf.testing.engines import EngineTests
from kvshelf.testing.memory import Setup

OK, CORRUPT = FileStatus.OK, FileStatus.CORRUPT


class TakenNameTests(EngineTests):
    """The root is ``setup.root``."""

    def stored(self, setup: Setup, index: int = 1) -> Path:
        assert setup.statuses("store", setup.batch((index, [1, 2, 3], 0))) == [OK]
        return setup.root / setup.path(index)

    @pytest.mark.parametrize("content", [b"", bytes(100), bytes(20_000)])
    @pytest.mark.parametrize("remove_bad", [True, False])
    def test_a_bad_file_under_a_chunks_name_is_not_the_chunk(
        self, setup: Setup, content: bytes, remove_bad: bool
    ) -> None:
        engine = setup.open(config=dataclasses.replace(self.config, remove_bad=remove_bad))
        path = self.stored(setup)
        path.write_bytes(content)
        rows = setup.batch((1, [1, 2, 3], 0))
        assert setup.statuses("store", rows, engine) == [OK if remove_bad else CORRUPT]
        assert engine.stats().removed_bad == remove_bad
        assert remove_bad or path.read_bytes() == content
        wanted = setup.memory[0].blocks([1, 2, 3])
        loaded = setup.batch((1, [20, 21, 22], 0))
        assert setup.statuses("load", loaded, engine) == [OK if remove_bad else CORRUPT]
        assert not remove_bad or setup.memory[0].blocks([20, 21, 22]) == wanted
        assert engine.close()

    @pytest.mark.parametrize("obstacle", ["folder", "FIFO", "link", "dangling link"])
    def test_an_obstacle_under_a_chunks_name_fails_the_store_and_stays(
        self, setup: Setup, obstacle: str
    ) -> None:
        path = self.stored(setup)
        aside = path.with_name("aside")
        path.rename(aside)
        make: dict[str, Callable[[], object]] = {
            "folder": path.mkdir,
            "FIFO": lambda: os.mkfifo(path),
            "link": lambda: path.symlink_to(aside),
            "dangling link": lambda: path.symlink_to("nowhere"),
        }
        make[obstacle]()
        kind = stat.S_IFMT(path.lstat().st_mode)
        assert setup.statuses("store", setup.batch((1, [1, 2, 3], 0))) == [CORRUPT]
        assert stat.S_IFMT(path.lstat().st_mode) == kind and aside.exists()
        assert list((setup.root / "ns" / "tmp").iterdir()) == []
        assert setup.engine.stats().removed_bad == 0
