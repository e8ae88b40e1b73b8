"""Stores, loads, evicts and, if asked to, damages the same few chunks as its fellows do.

    python -m tests.upkeep.scrub.racer ROOT SEED ROUNDS damage|no-damage

Says "racing" after its first store, goes on for at least so many rounds and until its standard
input ends, and prints how many loads were right of how many; ends with an error at the first wrong
byte.
"""

from __future__ import annotations

import contextlib
import random
import select
import sys
from pathlib import Path

import numpy as np

from kvshelf import Chunk, FileStatus, Shelf
from tests.harness.file_engine import flip
from tests.upkeep.scrub.shelves import CONFIG, IDENTITY, key

KEYS = 12


def content(number: int) -> np.ndarray:
    return np.random.default_rng(number).random((3, 3, 257), dtype=np.float32)


def told_to_end() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main(root: str, seed: str, least: str, damage: str) -> None:
    rng = random.Random(seed)
    blocks = np.zeros((6, 3, 257), np.float32)
    right = rounds = 0
    with Shelf.of_arrays(root, IDENTITY, blocks, config=CONFIG) as shelf:
        while rounds < int(least) or not told_to_end():
            number = rng.randrange(KEYS)
            path = Path(root) / shelf.path_of(key(number))
            blocks[:3] = content(number)
            [status] = shelf.store([Chunk(key(number), [0, 1, 2])])
            assert status is FileStatus.OK, status
            if rounds == 0:
                print("racing", flush=True)  # noqa: T201 - what its parent waits for
            rounds += 1
            [status] = shelf.load([Chunk(key(number), [3, 4, 5])])
            if status is FileStatus.OK:
                assert np.array_equal(blocks[3:], content(number)), "a wrong byte"
                right += 1
            else:
                assert status is FileStatus.NOT_FOUND or damage == "damage", status
            with contextlib.suppress(FileNotFoundError):
                if damage == "damage" and rng.random() < 0.3:
                    flip(path, rng.randrange(13_348))
                elif rng.random() < 0.3:
                    path.unlink()
    print(right, rounds)  # noqa: T201 - what its parent reads


if __name__ == "__main__":
    main(*sys.argv[1:])
