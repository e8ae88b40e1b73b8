"""The native engine: its own tests, where Python meets the core."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anycrc
import numpy as np
import pytest

from kvshelf import Chunk, Identity, Shelf, _native, make_key
from kvshelf.disk.layout import owner_is_dead, parse_chunk_path, parse_temp_name
from kvshelf.disk.this_process import start_ticks_of, this_owner
from kvshelf.engine import (
    Batch,
    BatchBuilder,
    Direct,
    Durability,
    Engine,
    EngineConfig,
    FileStatus,
    GroupMemory,
    JobKind,
    Pages,
    Phase,
)
from kvshelf.engine.native import NativeEngine
from kvshelf.errors import EngineClosedError
from kvshelf.testing import MemoryEngine
from tests.harness.codec import geometry_digest

PAGE_BYTES = 6000
BLOCKS = 64
NAMESPACE = bytes(range(32))


class Setup:
    """An engine over block memory of two layers; files of four blocks."""

    def __init__(self, root: Path, **settings: Any) -> None:
        rng = np.random.default_rng(3)
        self.root = root
        self.layers = [
            rng.integers(0, 256, (BLOCKS, PAGE_BYTES), dtype=np.uint8),
            rng.integers(0, 256, (BLOCKS, 2 * PAGE_BYTES), dtype=np.uint8),
        ]
        self.group = GroupMemory(
            tuple(Pages(a.ctypes.data, a.shape[1], a.shape[1]) for a in self.layers), BLOCKS
        )
        settings = {"io_threads": 2, "piece_bytes": 32768, "step_bytes": 8192, **settings}
        self.engine = NativeEngine(
            root, [self.group], EngineConfig(**settings), namespace=NAMESPACE, rank=5
        )

    @staticmethod
    def path(i: int) -> str:
        return f"ns/r5/abc/{i:016x}-g0.kv"

    def batch(self, begin: int, end: int) -> Batch:
        builder = BatchBuilder()
        for i in range(begin, end):
            ids = np.arange(4 * i, 4 * i + 4, dtype=np.int32)
            builder.add(self.path(i), b"key of a chunk %d" % i, 0, 0, ids)
        return builder.build()

    def done(self, job: int) -> tuple[FileStatus, ...]:
        assert self.engine.wait([job], Phase.FINISHED, 10)
        return self.engine.poll()[-1].statuses


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path)
    yield made
    assert made.engine.close()


@pytest.mark.parametrize("engine", [NativeEngine, MemoryEngine])
def test_every_verb_of_the_contract_is_there(engine: type) -> None:
    """The native engine inherits most of them from the core, which no type checker sees."""
    verbs = [name for name in vars(Engine) if not name.startswith("_")]
    assert "set_clock" in verbs
    assert [name for name in verbs if not callable(getattr(engine, name, None))] == []


def test_what_is_left_out_is_as_in_the_contract(setup: Setup) -> None:
    key = make_key(b"k" * 32, 0)
    setup.engine.submit_lookup_keys(1, ["ns/r0"], [key])
    setup.engine.touch_keys(["ns/r0"], [key], [1])
    assert setup.done(1) == (FileStatus.NOT_FOUND,)
    with pytest.raises(TypeError):
        setup.engine.touch_keys(["ns/r0"], [key], [1], True)


def test_crc64_agrees_with_an_independent_implementation() -> None:
    model = anycrc.Model("CRC64-NVME")
    rng = random.Random(1)
    assert _native.crc64(b"123456789") == 0xAE8B14860A799888
    for _ in range(200):
        data = rng.randbytes(rng.randrange(3000))
        cut = rng.randrange(len(data) + 1)
        assert _native.crc64(data) == model.calc(data)
        assert _native.crc64(data[cut:], _native.crc64(data[:cut])) == model.calc(data)


def test_a_file_is_laid_out_as_the_page_says(setup: Setup) -> None:
    setup.engine.submit_store(1, setup.batch(0, 1))
    assert setup.done(1) == (FileStatus.OK,)
    data = (setup.root / setup.path(0)).read_bytes()
    payload = b"".join(layer[block].tobytes() for block in range(4) for layer in setup.layers)
    assert data[:8] == b"KVSHELF\n"
    assert data[4096 : 4096 + len(payload)] == payload
    assert len(data) % 4096 == 0
    assert not any(data[4096 + len(payload) :])
    crc = anycrc.Model("CRC64-NVME")
    header = bytearray(data[:4096])
    geometry = geometry_digest([page.page_bytes for page in setup.group.pages])
    assert int.from_bytes(header[56:64], "little") == geometry
    assert int.from_bytes(header[16:24], "little") == crc.calc(
        bytes(header[:16] + bytes(8) + header[24:])
    )
    assert int.from_bytes(header[512:520], "little") == crc.calc(payload[:32768])
    assert header[:] == _native.encode_header(
        b"key of a chunk 0", NAMESPACE, 5, geometry, 3 * PAGE_BYTES, 0, 4, 32768,
        [crc.calc(payload[at : at + 32768]) for at in range(0, len(payload), 32768)],
    )  # fmt: skip


def test_reports_are_complete(setup: Setup) -> None:
    assert setup.engine.poll() == []
    setup.engine.submit_store(7, setup.batch(0, 3))
    assert setup.engine.wait([7], Phase.RELEASED, 10)
    assert setup.engine.wait([7, 1234], Phase.FINISHED, 10)
    released, finished = setup.engine.poll()
    assert (released.phase, finished.phase) == (Phase.RELEASED, Phase.FINISHED)
    assert finished.kind is JobKind.STORE
    assert finished.job_id == 7
    assert finished.statuses == (FileStatus.OK,) * 3
    assert finished.errnos == (0,) * 3
    assert finished.payload_bytes == 3 * 4 * setup.group.block_bytes
    assert 0 < finished.seconds < 10
    before = [layer.copy() for layer in setup.layers]
    for layer in setup.layers:
        layer[:] = 0
    setup.engine.submit_load(7, setup.batch(0, 4))
    assert setup.done(7) == (FileStatus.OK,) * 3 + (FileStatus.NOT_FOUND,)
    for layer, old in zip(setup.layers, before, strict=True):
        assert (layer[:12] == old[:12]).all()
        assert not layer[12:].any()


@pytest.mark.parametrize("write_behind", [False, True])
@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("direct", list(Direct))
def test_settings_that_change_the_path(
    tmp_path: Path, write_behind: bool, durability: Durability, direct: Direct
) -> None:
    if direct is Direct.ON and _native.probe_direct(str(tmp_path)) != 0:
        pytest.skip("no O_DIRECT here")
    setup = Setup(tmp_path, write_behind=write_behind, durability=durability, direct=direct)
    setup.engine.submit_store(1, setup.batch(0, 8))
    assert set(setup.done(1)) == {FileStatus.OK}
    setup.engine.submit_load(2, setup.batch(0, 8))
    assert set(setup.done(2)) == {FileStatus.OK}
    assert setup.engine.close()
    assert list((tmp_path / "ns/tmp").iterdir()) == []


def test_arguments_are_checked(setup: Setup) -> None:
    good = setup.batch(0, 2)
    for change in (
        {"groups": np.array([0, 1], np.int32)},
        {"groups": np.array([0, 0], np.int64)},
        {"paths": ["ns/a", "../b"]},
        {"keys": [b"x" * 12]},
        {"block_ids": np.arange(7, dtype=np.int32)},
        {"block_ids": np.full(8, BLOCKS, np.int32)},
    ):
        columns = {name: getattr(good, name) for name in Batch.__slots__} | change
        for submit in (setup.engine.submit_store, setup.engine.submit_load):
            with pytest.raises(ValueError):
                submit(1, Batch(**columns))
    with pytest.raises(ValueError):
        setup.engine.submit_lookup(1, ["/etc/passwd"])
    # A column that is a view with gaps is taken as what it shows.
    ids = np.zeros(16, np.int32)
    ids[::2] = np.arange(8)
    setup.engine.submit_store(
        1, Batch(good.paths, good.keys, good.groups, good.first_blocks, good.block_counts, ids[::2])
    )
    assert setup.done(1) == (FileStatus.OK, FileStatus.OK)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for settings in (
        {"io_threads": 0},
        {"piece_bytes": 5000},
        {"step_bytes": 100},
        {"queue_files": -1},
    ):
        with pytest.raises(ValueError):
            Setup(tmp_path, **settings)
    with pytest.raises(FileNotFoundError):
        Setup(tmp_path / "absent")
    with pytest.raises(ValueError):
        NativeEngine(tmp_path, [], EngineConfig(), namespace=b"short", rank=0)


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert setup.engine.close()
    assert setup.engine.close()
    for call in (
        lambda: setup.engine.submit_store(1, setup.batch(0, 1)),
        lambda: setup.engine.submit_load(1, setup.batch(0, 1)),
        lambda: setup.engine.submit_lookup(1, ["ns/x"]),
        lambda: setup.engine.touch(["ns/x"]),
    ):
        with pytest.raises(EngineClosedError):
            call()


def test_waiting_lets_other_python_threads_run(setup: Setup) -> None:
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    setup.engine.submit_load(1, setup.batch(0, 1))
    setup.engine.poll()
    assert setup.engine.wait([2], Phase.FINISHED, 0.2)
    assert setup.engine.drain(5)
    before = ticks
    time.sleep(0.05)
    stop.set()
    thread.join()
    assert ticks > before


def test_an_engine_that_is_forgotten_ends_its_threads(tmp_path: Path) -> None:
    code = f"""
import os, time
from kvshelf.engine import EngineConfig
from kvshelf.engine.native import NativeEngine
before = len(os.listdir("/proc/self/task"))
engine = NativeEngine({str(tmp_path)!r}, [], EngineConfig(), namespace=bytes(32), rank=0)
engine.submit_lookup(1, ["ns/x"] * 1000)
assert len(os.listdir("/proc/self/task")) > before + 8
del engine
end = time.monotonic() + 10  # a joined thread stays in /proc for a moment
while len(os.listdir("/proc/self/task")) > before and time.monotonic() < end:
    time.sleep(0.01)
assert len(os.listdir("/proc/self/task")) == before
engine = NativeEngine({str(tmp_path)!r}, [], EngineConfig(), namespace=bytes(32), rank=0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_name_longer_than_names_can_be_is_a_miss(setup: Setup) -> None:
    """Of the longest hash and a group of many digits; not a fault, which would open a breaker."""
    keys = [make_key(bytes([1]) * 124, group) for group in (0, 2**32 - 1)]
    setup.engine.submit_lookup_keys(1, ["ns/r0"], keys)
    assert setup.done(1) == (FileStatus.NOT_FOUND,) * 2


def test_an_idle_engine_uses_no_processor_time(setup: Setup) -> None:
    setup.engine.submit_lookup(1, ["ns/x"])
    setup.done(1)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.02


STORING = """
import sys
import numpy as np
from kvshelf import Chunk, Identity, Shelf, make_key
blocks = np.ones((16, 1 << 22), dtype=np.uint8)
shelf = Shelf.of_arrays(sys.argv[1], Identity({"model": "m"}), blocks)
for i in range(10_000):
    shelf.store([Chunk(make_key(i.to_bytes(32, "big"), 0), range(16))])
"""


def test_a_killed_writer_leaves_a_temp_file_that_says_whose_it_is(tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    left: list[Path] = []
    for _ in range(20):  # it may publish between our look and the signal
        with subprocess.Popen([sys.executable, "-c", STORING, str(root)]) as writer:
            while not list(root.glob("*/tmp/[!.]*.tmp")):
                assert writer.poll() is None
            writer.kill()
        left = list(root.glob("*/tmp/[!.]*.tmp"))
        if left:
            break
    owner, here = parse_temp_name(left[0].name), this_owner()
    assert owner is not None and owner.pid == writer.pid
    assert owner_is_dead(owner, here=here, start_ticks_of=start_ticks_of) is True
    # What has a chunk's name is whole, and a new engine stores the rest.
    blocks = np.zeros((16, 1 << 22), dtype=np.uint8)
    with Shelf.of_arrays(root, Identity({"model": "m"}), blocks) as shelf:
        for path in root.glob("*/r0/*/*.kv"):
            chunk = parse_chunk_path(str(path.relative_to(root)))
            assert chunk is not None
            assert shelf.load([Chunk(chunk.key, range(16))]) == [FileStatus.OK]
            assert (blocks == 1).all()
