"""A trace against a real shelf: real chunk files, real loads, deletion by what the files say.

Checks the simulation. The chunks are tiny and the clock is the trace's, so the shelf's access times
are set here, in the order in which kvshelf touches; everything else is what an engine does: lookup,
load, store, and an evictor that reads nothing but names and times. One thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvshelf.disk.junk import is_junk
from kvshelf.disk.keys import ChunkKey, make_key
from kvshelf.disk.namespace import Identity
from kvshelf.disk.tree import folder_at, root_at
from kvshelf.disk.walk import What, walk
from kvshelf.engine import EngineConfig, FileStatus
from kvshelf.errors import ConfigError
from kvshelf.plan.simulate import STEP_SECONDS, AgeFunction, ByAge, plain_age, simulate
from kvshelf.plan.trace import Trace
from kvshelf.shelf import Chunk, Shelf
from kvshelf.upkeep.evict.policy import effective_age

SETTING = "replay"
POLICIES = ("lru", "kvshelf")
_IDENTITY = Identity({"model": "kvshelf-plan-replay"})
_NS = 1_000_000_000
# Times of files must be positive; any date will do.
_EPOCH_SECONDS = 1_000_000_000
# Numbers in a chunk: the block's id, so that a load shows whose bytes it brought.
_NUMBERS = 8


class ReplayError(RuntimeError):
    """The shelf did what no shelf may: a store failed, or a load brought other bytes."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """
    Attributes:
        hits: blocks of all requests that were loaded and verified.
        simulated_hits: of the same requests, by the simulation.
    """

    requests: int
    capacity_blocks: int
    hits: int
    simulated_hits: int


def replay(
    trace: Trace,
    directory: Path,
    capacity_blocks: int,
    *,
    policy: str = "lru",
    touch_interval_seconds: float = 0.0,
) -> Replayed:
    """Run a trace against a new shelf in ``directory``, and against the simulation.

    Args:
        directory: absent or empty; the shelf stays there afterwards.
        policy: one of ``POLICIES``.
        touch_interval_seconds: with LRU, 0 is what the simulation of every capacity knows.

    Raises:
        ConfigError: the directory cannot be used; nothing was written.
        ReplayError: the shelf is at fault.
    """
    directory = directory.absolute()
    if os.path.lexists(directory) and not _is_empty(directory):
        raise ConfigError(SETTING, str(directory), "must be a directory that is absent or empty")
    # Requests at one time are told apart: the order of a trace is the order of use.
    distinct = np.maximum.accumulate(trace.seconds + 1e-6 * np.arange(trace.requests))
    trace = Trace(trace.block_tokens, distinct, trace.prompt_tokens, trace.offsets, trace.blocks)
    longest = int(np.diff(trace.offsets).max(initial=1))
    memory = np.zeros((2 * max(longest, 1), _NUMBERS))
    age = effective_age if policy == "kvshelf" else plain_age
    # A single lookup thread asks in order; there is nothing to wait for.
    config = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=2)
    with Shelf.of_arrays(directory, _IDENTITY, memory, config=config) as shelf:
        player = _Player(shelf, directory, memory, age, touch_interval_seconds)
        hits = sum(player.play(*each, capacity_blocks) for each in _requests(trace))
    order = ByAge(trace, age, touch_interval_seconds=touch_interval_seconds)
    expected = simulate(trace, capacity_blocks, order).hits
    return Replayed(trace.requests, capacity_blocks, hits, expected)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and all(is_junk(entry.name) for entry in path.iterdir())


def _requests(trace: Trace) -> Iterator[tuple[float, list[int]]]:
    offsets = trace.offsets.tolist()
    for request, now in enumerate(trace.seconds.tolist()):
        yield now, trace.blocks[offsets[request] : offsets[request + 1]].tolist()


class _Player:
    """Plays requests against a shelf and keeps it within its capacity."""

    def __init__(
        self,
        shelf: Shelf,
        root: Path,
        memory: NDArray[np.float64],
        age: AgeFunction,
        touch_interval_seconds: float,
    ) -> None:
        self._shelf = shelf
        self._root = root
        self._memory = memory
        self._age = age
        self._interval_ns = int(touch_interval_seconds * _NS)
        self._held = 0

    def play(self, now: float, blocks: list[int], capacity_blocks: int) -> int:
        """One request; returns how many of its blocks the shelf had."""
        if not blocks:
            return 0
        keys = [_key(block) for block in blocks]
        there = [status is FileStatus.OK for status in self._shelf.lookup(keys)]
        hit = there.index(False) if False in there else len(there)
        now_ns = int((_EPOCH_SECONDS + now) * _NS)
        # Before the load: reading a file may itself renew its access time, to today's.
        times = [
            self._times(key) if is_there else None
            for key, is_there in zip(keys, there, strict=True)
        ]
        self._load(keys[:hit], blocks[:hit])
        self._store(keys[hit:], blocks[hit:])
        self._touch(keys, times, now_ns)
        self._held += there.count(False)
        if self._held > capacity_blocks:
            self._evict(capacity_blocks, now_ns)
        return hit

    def _load(self, keys: list[ChunkKey], blocks: list[int]) -> None:
        self._memory[:] = -1
        chunks = [Chunk(key, [row]) for row, key in enumerate(keys)]
        statuses = self._shelf.load(chunks)
        wanted = np.repeat(np.array(blocks, dtype=np.float64)[:, None], _NUMBERS, axis=1)
        if set(statuses) - {FileStatus.OK} or not (self._memory[: len(keys)] == wanted).all():
            raise ReplayError(f"a load of {len(keys)} chunks brought other bytes: {set(statuses)}")

    def _store(self, keys: list[ChunkKey], blocks: list[int]) -> None:
        self._memory[: len(blocks)] = np.array(blocks, dtype=np.float64)[:, None]
        statuses = self._shelf.store([Chunk(key, [row]) for row, key in enumerate(keys)])
        if set(statuses) - {FileStatus.OK}:
            raise ReplayError(f"a store of {len(keys)} chunks failed: {set(statuses)}")

    def _times(self, key: ChunkKey) -> tuple[int, int]:
        found = (self._root / self._shelf.path_of(key)).stat()
        return found.st_atime_ns, found.st_mtime_ns

    def _touch(
        self, keys: list[ChunkKey], times: list[tuple[int, int] | None], now_ns: int
    ) -> None:
        """Access times in the order of a prefix; modification times say when it was stored."""
        step_ns = int(STEP_SECONDS * _NS)
        stores = None in times
        for index, (key, known) in enumerate(zip(keys, times, strict=True)):
            accessed_ns, stored_ns = known or (now_ns, now_ns)
            if stores or now_ns - accessed_ns >= self._interval_ns:
                accessed_ns = now_ns - index * step_ns
            path = self._root / self._shelf.path_of(key)
            os.utime(path, ns=(accessed_ns, stored_ns), follow_symlinks=False)

    def _evict(self, capacity_blocks: int, now_ns: int) -> None:
        """Remove the oldest chunks, seeing only names and times, as an evictor does."""
        files = list(_scan(self._root))
        accessed = np.array([found.st_atime_ns for _, found in files])
        stored = np.array([found.st_mtime_ns for _, found in files])
        ages = self._age((now_ns - accessed) / _NS, accessed > stored, np.zeros(len(files)))
        for index in np.argsort(-ages, kind="stable")[: len(files) - capacity_blocks]:
            _unlink(self._root / files[index][0])
        self._held = min(len(files), capacity_blocks)


def _scan(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Paths, relative to the root, of the chunk files there."""
    with root_at(root) as folder:
        for found in walk(folder):
            if found.what is What.CHUNK:
                status = os.stat(found.name, dir_fd=found.folder, follow_symlinks=False)
                yield found.path, status


def _unlink(path: Path) -> None:
    """Of a file in a folder that is no link."""
    with folder_at(None, path.parent) as folder:
        os.unlink(path.name, dir_fd=folder)


def _key(block: int) -> ChunkKey:
    # Spread over few folders: a scan lists them all. The first 3 hex digits name the folder.
    return make_key(bytes([block % 16]) + bytes(23) + block.to_bytes(8, "big"), 0)
