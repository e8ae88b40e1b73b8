"""A small shelf of real chunk files, and what it is scrubbed with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, Shelf, make_key
from kvshelf.upkeep.scrub.findings import Action, Finding, Kind
from kvshelf.upkeep.scrub.scrubber import Scrubber
from kvshelf.upkeep.scrub.settings import ScrubSettings

IDENTITY = Identity({"model": "demo", "dtype": "float32"})
OTHER = Identity({"model": "other", "dtype": "float32"})
CONFIG = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=2, piece_bytes=8192)
# 3,084 bytes a block: three of them make two pieces, 9,252 bytes of payload and 3,036 of padding.
BLOCKS = np.random.default_rng(0).random((16, 3, 257), dtype=np.float32)
FAST = {"megabytes_per_second": 0.0, "files_per_second": 0.0}


def key(number: int) -> bytes:
    """Keys of different folders."""
    return make_key(number.to_bytes(2, "big") * 16, 0)


def fill(
    root: Path, numbers: Any = range(8), identity: Identity = IDENTITY, rank: int = 0
) -> list[Path]:
    """Store chunks of three blocks each; their paths."""
    with Shelf.of_arrays(
        root, identity, BLOCKS, rank=rank, world_size=rank + 1, config=CONFIG
    ) as shelf:
        chunks = [Chunk(key(n), [n % 14, n % 14 + 1, n % 14 + 2]) for n in numbers]
        assert shelf.store(chunks) == [FileStatus.OK] * len(chunks)
        return [root / shelf.path_of(chunk.key) for chunk in chunks]


@pytest.fixture(scope="session")
def filled_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scrub") / "shelf"
    fill(root)
    return root


@pytest.fixture
def shelf(tmp_path: Path, filled_shelf: Path) -> Path:
    """Eight chunks of one namespace and rank."""
    shutil.copytree(filled_shelf, tmp_path / "shelf")
    return tmp_path / "shelf"


def chunks(root: Path) -> list[Path]:
    return sorted(root.rglob("*.kv"))


def scrubbed(root: Path, **settings: Any) -> tuple[list[Finding], Scrubber]:
    scrubber = Scrubber(root, ScrubSettings(**{**FAST, **settings}))
    return list(scrubber.run()), scrubber


def found(root: Path, **settings: Any) -> list[tuple[Kind, str, Action]]:
    """(kind, path, action) of every finding of a scrub."""
    return [(f.kind, f.path, f.action) for f in scrubbed(root, **settings)[0]]


def everything(root: Path) -> dict[str, Any]:
    """What lies under a directory but the cursor: type, inode, size, content of regular files."""
    return dict(_everything(root))


def _everything(root: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(root.rglob("*")):
        if path.name == "kvshelf-scrub.json":
            continue
        stat = path.lstat()
        regular = path.is_file() and not path.is_symlink()
        content = path.read_bytes() if regular else None
        target = path.readlink() if path.is_symlink() else None
        yield str(path.relative_to(root)), (stat.st_mode, stat.st_ino, content, target)
