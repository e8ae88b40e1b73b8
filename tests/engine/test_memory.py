"""The memory engine and the faulty one: what the conformance suite does not say of them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kvshelf.engine import Engine, EngineConfig, FileStatus, JobKind
from kvshelf.testing import Blocks, EngineTests, MemoryEngine, Setup
from tests.harness.faulty_engine import FaultyEngine

OK, NOT_FOUND = FileStatus.OK, FileStatus.NOT_FOUND


class TestMemoryEngine(EngineTests):
    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        return partial(MemoryEngine, files={})


class TestFaultyEngineWithoutFaults(EngineTests):
    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        make = partial(MemoryEngine, files={})
        return lambda *args, **kwargs: FaultyEngine(make(*args, **kwargs), {})


def test_what_no_engine_put_there_is_damaged(tmp_path: Path) -> None:
    files: dict[str, object] = {}
    setup = Setup(partial(MemoryEngine, files=files), tmp_path, [Blocks((64,), 8)], EngineConfig())
    files[setup.path(1)] = b"anything"
    assert setup.statuses("lookup", [setup.path(1)]) == [OK]
    assert setup.statuses("load", setup.batch((1, [1], 0))) == [FileStatus.CORRUPT]
    assert setup.engine.stats().removed_bad == 1
    assert files == {}


def test_faults_are_told_of_chosen_paths_and_kinds(tmp_path: Path) -> None:
    faults: dict[tuple[JobKind, str], tuple[FileStatus, int]] = {}

    def make(*args: object, **kwargs: object) -> Engine:
        return FaultyEngine(MemoryEngine(*args, **kwargs), faults)  # type: ignore[arg-type]

    setup = Setup(make, tmp_path, [Blocks((64,), 8)], EngineConfig())
    rows = setup.batch((1, [1], 0), (2, [2], 0))
    faults[JobKind.STORE, setup.path(1)] = FileStatus.DROPPED, 0
    released, finished = setup.finish("store", rows)
    assert released.statuses == (OK, OK)
    assert finished.statuses == (FileStatus.DROPPED, OK)
    faults[JobKind.LOAD, setup.path(2)] = FileStatus.IO_ERROR, errno.EIO
    (report,) = setup.finish("load", rows)
    assert (report.statuses, report.errnos) == ((OK, FileStatus.IO_ERROR), (0, errno.EIO))
    assert setup.statuses("lookup", [setup.path(2)]) == [OK]
    faults.clear()
    assert setup.statuses("load", rows) == [OK, OK]
