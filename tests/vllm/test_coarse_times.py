"""What eviction leaves of prompts where the file system keeps whole seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, make_key  # noqa: E402
from kvshelf.config import Settings  # noqa: E402
from kvshelf.disk.clock import FileClock  # noqa: E402
from kvshelf.disk.keys import ChunkKey  # noqa: E402
from kvshelf.faultlog import FaultLog  # noqa: E402
from kvshelf.shelf import Shelf  # noqa: E402
from kvshelf.upkeep.evict import Evictor, Limits  # noqa: E402
from kvshelf.vllm.scheduler.chunk_table import ChunkTable  # noqa: E402
from kvshelf.vllm.scheduler.masked import MaskedShelf  # noqa: E402
from kvshelf.vllm.scheduler.touches import Touches  # noqa: E402
from tests.harness.loop_mount import loop_mount  # noqa: E402
from tests.harness.quirk_mount import quirk_mount  # noqa: E402
from tests.upkeep.evict.shelves import settle  # noqa: E402

SECOND = 10**9
CHUNKS, KEPT = 100, 60
TOKENS = 16
# (file system, step of its times in ns)
MOUNTS = {
    "quirkfs": 1,
    "quirkfs, 1 s": SECOND,
    "quirkfs, 2 s": 2 * SECOND,
    "ext4": 1,
    "ext4, strictatime": 1,
    "ext4 -I 128": SECOND,
}
# ext4 on loop devices: arguments of mkfs, and options of the mount.
MAKE = {
    "ext4": ((), "relatime"),
    "ext4, strictatime": ((), "strictatime"),
    "ext4 -I 128": (("-I", "128"), "relatime"),
}


class Request:
    """vLLM's context of a request: where in it a chunk ends."""

    def __init__(self, req_id: str, keys: list[ChunkKey]) -> None:
        self.req_id = req_id
        self._ends = {key: TOKENS * (index + 1) for index, key in enumerate(keys)}

    def get_offload_key_position(self, key: bytes) -> int:
        return self._ends[ChunkKey(key)]


@pytest.fixture(params=MOUNTS)
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    step_ns = MOUNTS[request.param]
    if request.param in MAKE:
        arguments, options = MAKE[request.param]
        with loop_mount(tmp_path, "ext4", 64, mkfs=arguments, options=options) as folder:
            yield folder, step_ns
    else:
        with quirk_mount(tmp_path, time_step_ns=step_ns) as mounted:
            yield mounted.path, step_ns


@pytest.mark.parametrize("prompts", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_read", [False, True])
def test_what_is_kept_of_a_prompt_can_be_loaded(
    mount: tuple[Path, int], prompts: int, is_read: bool
) -> None:
    """Prompts of 100 chunks, evicted to 60 a prompt; ``is_read``: a backup reads all before."""
    path, step_ns = mount
    memory = np.zeros((1, 4096), dtype=np.uint8)
    config = EngineConfig(io_threads=2, load_only_threads=0, lookup_threads=2)
    names = [
        [make_key(f"{prompt}-{i}".encode().ljust(32, b"."), 0) for i in range(CHUNKS)]
        for prompt in range(prompts)
    ]
    with Shelf.of_arrays(path / "shelf", Identity({"model": "tiny"}), memory, config=config) as s:
        reading = FileClock(path / "shelf").read()
        assert reading is not None and reading.step_ns == step_ns
        masked = MaskedShelf(s)
        masked.set_clock(0, reading)
        log = FaultLog(logging.getLogger("test"))
        table = ChunkTable.of(Settings(), 1)
        touches = Touches(masked, table, log, chunk_tokens=TOKENS, interval_seconds=600)
        for prompt, keys in enumerate(names):
            request = Request(str(prompt), keys)
            times_ns = touches.stores(keys, request)
            assert set(s.store([Chunk(key, [0]) for key in keys])) == {FileStatus.OK}
            touches.touch(keys, times_ns)
            assert s.drain(30)
        files = [[path / "shelf" / s.path_of(key) for key in keys] for keys in names]
    size = files[0][0].stat().st_size
    if is_read:
        time.sleep(1e-9 * step_ns)  # readers come later than touches, by the file system's times
        for each in files:
            for file in each:
                file.read_bytes()
        if step_ns == 1:
            # Why access times do not count: by them the ends of prompts are the youngest.
            flat = [file for each in files for file in each]
            flat.sort(key=lambda file: file.stat().st_atime_ns)
            kept = set(flat[-prompts * KEPT :])
            assert _loadable([[file in kept for file in each] for each in files[:1]]) == 0
    limits = Limits(shelf_bytes=prompts * KEPT * size, low_percent=100)
    settle(Evictor(path / "shelf", limits))
    there = [[file.exists() for file in each] for each in files]
    assert sum(map(sum, there)) == prompts * KEPT
    assert _loadable(there) >= 0.98 * prompts * KEPT, [sum(each) for each in there]


def _loadable(there: list[list[bool]]) -> int:
    """Chunks of prompts without a gap before them."""
    return sum((*each, False).index(False) for each in there)
