"""The chunks that a writer stores before it is killed, and what must be found afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, make_key
from kvshelf.shelf import Shelf

IDENTITY = Identity({"model": "crash"})
CHUNKS = 3
BLOCKS = 3  # of a chunk
PAGE_BYTES = (5000, 3100)  # two layers; the payload is padded to a page
SMALL = {"piece_bytes": 8192, "step_bytes": 8192}  # three pieces
# One thread of each kind makes the order of the calls the same every time.
ORDERED: dict[str, Any] = {"io_threads": 1, "load_only_threads": 0, "lookup_threads": 1, **SMALL}
MANY: dict[str, Any] = {"io_threads": 4, "load_only_threads": 1, "lookup_threads": 2, **SMALL}


def key_of(index: int) -> bytes:
    # Chunks 0 and 1 share a folder.
    return make_key(bytes([max(index, 1) << 4]) + index.to_bytes(31, "big"), 0)


def new_memory() -> list[NDArray[np.uint8]]:
    return [np.zeros((CHUNKS * BLOCKS, size), dtype=np.uint8) for size in PAGE_BYTES]


def content() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    return [rng.integers(1, 256, layer.shape, dtype=np.uint8) for layer in new_memory()]


CONTENT = content()


def chunk(index: int) -> Chunk:
    return Chunk(key_of(index), range(index * BLOCKS, (index + 1) * BLOCKS))


def open_shelf(root: Path, memory: list[NDArray[np.uint8]], **settings: Any) -> Shelf:
    return Shelf.of_arrays(root, IDENTITY, [memory], config=EngineConfig(**settings))


def load_all(root: Path) -> list[FileStatus]:
    """A new reader's answer for each chunk; one that it calls OK is right, or this fails."""
    memory = new_memory()
    with open_shelf(root, memory, **MANY) as shelf:
        looked = shelf.lookup([key_of(index) for index in range(CHUNKS)])
        statuses = shelf.load([chunk(index) for index in range(CHUNKS)])
    for index, status in enumerate(statuses):
        rows = slice(index * BLOCKS, (index + 1) * BLOCKS)
        if status is FileStatus.OK:
            assert looked[index] is FileStatus.OK
            for layer, right in zip(memory, CONTENT, strict=True):
                assert np.array_equal(layer[rows], right[rows]), f"chunk {index} is wrong"
    return statuses


def store_the_rest(root: Path) -> None:
    """A new writer makes the shelf whole."""
    with open_shelf(root, [layer.copy() for layer in CONTENT], **MANY) as shelf:
        stored = shelf.store([chunk(index) for index in range(CHUNKS)])
    assert stored == [FileStatus.OK] * CHUNKS
    assert load_all(root) == [FileStatus.OK] * CHUNKS
