"""The server of writers, and a folder for shelves that are made and removed by the hundred."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.writer import Writers, build


@pytest.fixture(scope="session")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return build(tmp_path_factory.mktemp("preload"))


@pytest.fixture(scope="session")
def writers(preload: Path) -> Iterator[Writers]:
    made = Writers(preload)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: a kill leaves the page cache alone, and power losses are
    modeled, so a disk would only cost time."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="kvshelf-crash-", dir=parent) as made:
        yield Path(made)
