"""Which of several roots a chunk lies in: rendezvous hashing of its key. Pure; no I/O, no state.

Every root has a seed, made from its path. A chunk lies in the root of which mix(x XOR seed) is the
largest, where x are the last 8 bytes of its block hash. So all groups and ranks of a chunk lie
together, the order of the roots does not matter, and a root that is added takes its share from the
others and moves nothing between them. Two weights of one chunk are never equal: mix is a bijection.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); mix is
the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvshelf.disk.keys import GROUP_BYTES, HASH_BYTES_MIN, KEY_BYTES_MIN

# Where x lies in a key: behind it comes the group.
_X = slice(-GROUP_BYTES - HASH_BYTES_MIN, -GROUP_BYTES)
_MASK = (1 << 64) - 1
# Shifts and factors of mix.
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


class Share(NamedTuple):
    """What one root has of a list of keys.

    Attributes:
        root: its index.
        rows: where the keys were, ascending.
        keys: the keys.
        runs: lengths of what they have of each run; see ``Engine.submit_lookup_keys``.
    """

    root: int
    rows: NDArray[np.intp]
    keys: Sequence[bytes]
    runs: Sequence[int]


class Rendezvous:
    """
    Args:
        roots: distinct absolute paths, the same on every node; what names a root.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._seeds = [_seed(root) for root in roots]
        self._column = np.array(self._seeds, dtype=np.uint64)[:, np.newaxis]

    def of_key(self, key: bytes) -> int:
        """Index of a key's root: a microsecond or two. The key has 12 bytes or more."""
        if len(self._seeds) == 1:
            return 0
        x = int.from_bytes(key[_X], "little")
        weights = [_mix(x ^ seed) for seed in self._seeds]
        return weights.index(max(weights))

    def of_keys(self, keys: Sequence[bytes]) -> NDArray[np.intp]:
        """The same for many keys.

        Raises:
            ValueError: one has fewer than 12 bytes.
        """
        joined = b"".join([key[_X] for key in keys])
        if len(joined) != HASH_BYTES_MIN * len(keys):
            raise ValueError(f"keys must have {KEY_BYTES_MIN} bytes or more")
        x = np.frombuffer(joined, dtype="<u8") ^ self._column
        for shift, factor in _STEPS:
            x ^= x >> np.uint64(shift)
            x *= np.uint64(factor)
        x ^= x >> np.uint64(_LAST_SHIFT)
        largest: NDArray[np.intp] = x.argmax(axis=0)
        return largest

    def shares(self, keys: Sequence[bytes], runs: Sequence[int] = ()) -> list[Share]:
        """The keys of each root that has any, with their parts of the runs.

        Raises:
            ValueError: as ``of_keys``, if there are several roots.
        """
        if len(self._seeds) == 1:
            return [Share(0, np.arange(len(keys)), keys, runs)]
        roots, ends = self.of_keys(keys), np.cumsum(runs, dtype=np.intp)
        made = []
        for root in np.unique(roots).tolist():
            rows = np.flatnonzero(roots == root)
            of_run = np.bincount(np.searchsorted(ends, rows, "right"), minlength=len(ends) + 1)
            lengths = [length for length in of_run[:-1].tolist() if length]
            made.append(Share(root, rows, [keys[row] for row in rows.tolist()], lengths))
        return made


def _seed(root: str) -> int:
    name = os.fsencode(os.path.normpath(root))
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little")


def _mix(x: int) -> int:
    for shift, factor in _STEPS:
        x = ((x ^ x >> shift) * factor) & _MASK
    return x ^ x >> _LAST_SHIFT
