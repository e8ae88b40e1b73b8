"""What the chunks of a stress run hold: bytes that follow from the key; any mix-up shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvshelf import Identity, make_key

IDENTITY = Identity({"model": "stress"})
KEYS = 96  # few, so that all processes meet at the same files all the time
BLOCKS = 4  # of a chunk
PAGE_BYTES = (40_000, 25_536)  # two layers; neither is a multiple of a page of memory
BLOCK_BYTES = sum(PAGE_BYTES)
CHUNK_BYTES = BLOCKS * BLOCK_BYTES


def key_of(index: int) -> bytes:
    # The first byte decides the folder: a few folders, each with a few files.
    return make_key(bytes([index % 7]) + index.to_bytes(31, "big"), 0)


def make_content() -> NDArray[np.uint8]:
    """uint8[KEYS, BLOCKS, BLOCK_BYTES]; made before the workers are forked, which then share it."""
    made = [
        np.random.default_rng(1000 + index).integers(0, 256, (BLOCKS, BLOCK_BYTES), dtype=np.uint8)
        for index in range(KEYS)
    ]
    return np.stack(made)
