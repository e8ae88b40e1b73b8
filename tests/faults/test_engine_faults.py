"""The native engine on a mounted file system whose system calls fail, hang or lie.

Each fault gives a status, never an exception; memory that no file of the job owns stays as it is;
when the fault is over, everything works again with the same engine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvshelf.engine import Batch, EngineConfig, FileStatus, Phase
from kvshelf.engine.native import NativeEngine
from kvshelf.testing import Blocks, Setup

from .matrix import Cell, Outcome, every_cell
from .mount import FaultyMount, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

OK, NOT_FOUND, CORRUPT, IO_ERROR, TIMED_OUT, DROPPED = (
    FileStatus.OK,
    FileStatus.NOT_FOUND,
    FileStatus.CORRUPT,
    FileStatus.IO_ERROR,
    FileStatus.TIMED_OUT,
    FileStatus.DROPPED,
)
CHUNKS = 6
TARGETS = [(i, [30 + 2 * i, 31 + 2 * i], 0) for i in range(CHUNKS)]


@pytest.fixture
def setup(mount: FaultyMount) -> Iterator[Setup]:
    """An engine on the mount; chunks 0 to 5 of blocks 2i and 2i + 1 are stored."""
    config = EngineConfig(
        io_threads=3,
        load_only_threads=1,
        lookup_threads=2,
        piece_bytes=8192,
        step_bytes=4096,
        write_buffer_bytes=1 << 20,
        load_timeout_seconds=1.0,
        store_queue_seconds=1.0,
        store_timeout_seconds=1.0,
        lookup_timeout_seconds=0.5,
    )
    mount.set()
    root = mount.path / f"shelf-{time.time_ns()}"
    root.mkdir()
    blocks = Blocks((4096, 1000, 8192), 48)
    made = Setup(NativeEngine, root, [blocks], config)
    assert made.statuses("store", made.batch(*stored())) == [OK] * CHUNKS
    yield made
    mount.set()
    made.engine.close()
    assert blocks.guards_are_whole()


def stored() -> list[tuple[int, list[int], int]]:
    return [(i, [2 * i, 2 * i + 1], 0) for i in range(CHUNKS)]


def check_all_is_well(setup: Setup) -> None:
    """The same engine stores and loads again, and every byte is right."""
    deadline = time.monotonic() + 15
    while True:
        statuses = setup.statuses("store", setup.batch(*stored()))
        statuses += setup.statuses("load", setup.batch(*TARGETS))
        if set(statuses) == {OK}:
            break
        assert time.monotonic() < deadline, statuses
        time.sleep(0.1)
    check_bytes(setup, TARGETS)


def check_bytes(setup: Setup, targets: list[tuple[int, list[int], int]]) -> None:
    """What was loaded is what was stored."""
    for (_, source, _), (_, target, _) in zip(stored(), targets, strict=True):
        assert setup.memory[0].blocks(target) == setup.memory[0].blocks(source)


def mountable() -> Iterator[Any]:
    """The cells of the matrix that the mount can express, for every chunk of a job at once."""
    for cell, outcome in every_cell():
        call = (cell.job, cell.operation, cell.target)
        if call not in MOUNTED or cell.fault not in MOUNTED[call][1]:
            continue
        if (cell.chunks, cell.times, cell.durability) == ("one", "always", "none"):
            name = MOUNTED[call][0]
            faults = SPECIAL.get((name, cell.fault)) or {name: cell.fault}
            yield pytest.param(cell, outcome, faults, id=", ".join((*call, cell.fault)))


# What the mount calls a call, and which of the matrix's faults it lets through as they are: the
# kernel answers some in its own way, such as a stat from what an open has told it.
ERRNOS = ("EIO", "ESTALE", "ENOSPC", "EACCES")
MOUNTED: dict[tuple[str, str, str], tuple[str, tuple[str, ...]]] = {
    ("load", "open", "chunk"): ("open", (*ERRNOS, "ENOENT")),
    ("load", "read", "payload"): ("read", (*ERRNOS, "short", "bit flip")),
    ("store", "open", "temp file"): ("create", ERRNOS),
    ("store", "write", "payload"): ("write", (*ERRNOS, "short")),
    ("store", "rename", "chunk"): ("rename", (*ERRNOS, "EEXIST", "done, but EIO")),
    ("store", "mkdir", "folder"): ("mkdir", ERRNOS),
    ("store", "close", "temp file"): ("close", ("EIO", "ENOSPC")),
    ("lookup", "stat", "chunk"): ("stat", ("EIO", "ESTALE", "EACCES", "ENOENT")),
}
SPECIAL: dict[tuple[str, str], dict[str, Any]] = {
    ("read", "short"): {"short_read": 0.3},
    ("read", "bit flip"): {"flip_read_bit": True},
    ("write", "short"): {"short_write": 0.4},
    ("rename", "done, but EIO"): {"rename_after": "EIO"},
}


def batch_of(setup: Setup, cell: Cell, rows: list[tuple[int, list[int], int]]) -> Batch:
    """In a folder that is not there yet if it is to be made."""
    batch = setup.batch(*rows)
    if cell.operation != "mkdir":
        return batch
    return dataclasses.replace(
        batch, paths=[path.replace("/abc/", "/abd/") for path in batch.paths]
    )


@pytest.mark.parametrize(("cell", "outcome", "faults"), list(mountable()))
def test_cells_of_the_matrix(
    setup: Setup, mount: FaultyMount, cell: Cell, outcome: Outcome, faults: dict[str, Any]
) -> None:
    untouched = setup.memory[0].blocks(range(30))
    if cell.job == "store":
        rows = [(100 + i, [2 * i, 2 * i + 1], 0) for i in range(CHUNKS)]
        mount.set(**faults)
    else:
        rows = TARGETS
        mount.set(match="*.kv", **faults)
    work = batch_of(setup, cell, rows)
    result = setup.finish(cell.job, list(work.paths) if cell.job == "lookup" else work)[-1]
    mount.set()
    assert {status.name for status in result.statuses} == {outcome.status}
    assert set(result.errnos) == {outcome.error}
    assert setup.memory[0].blocks(range(30)) == untouched
    if cell.job == "load" and outcome.status == "OK":
        check_bytes(setup, TARGETS)
    targets = [(index, list(TARGETS[i][1]), 0) for i, (index, _, _) in enumerate(rows)]
    setup.memory[0].clear(range(30, 30 + 2 * CHUNKS))
    later = setup.statuses("load", batch_of(setup, cell, targets))
    assert {status.name for status in later} == {outcome.later}
    if outcome.later == "OK":
        check_bytes(setup, TARGETS)
    check_all_is_well(setup)


@pytest.mark.parametrize(
    ("faults", "allowed"),
    [
        ({"flip_read_bit": True, "probability": 0.2}, {OK, CORRUPT}),
        ({"read": "EIO", "probability": 0.3}, {OK, IO_ERROR}),
        ({"stat": "EIO"}, {OK, IO_ERROR}),
    ],
    ids=str,
)
def test_loads_that_fail_in_part(
    setup: Setup, mount: FaultyMount, faults: dict[str, Any], allowed: set[FileStatus]
) -> None:
    mount.set(match="*.kv", **faults)
    statuses = setup.statuses("load", setup.batch(*TARGETS))
    assert set(statuses) <= allowed, statuses
    for status, (_, source, _), (_, target, _) in zip(statuses, stored(), TARGETS, strict=True):
        if status is OK:
            assert setup.memory[0].blocks(target) == setup.memory[0].blocks(source)
    mount.set()
    check_all_is_well(setup)


@pytest.mark.parametrize(
    "faults", [{"write": "EIO", "probability": 0.3}, {"unlink": "EIO"}], ids=str
)
def test_stores_that_fail_in_part(setup: Setup, mount: FaultyMount, faults: dict[str, Any]) -> None:
    mount.set(**faults)
    rows = [(100 + i, [2 * i, 2 * i + 1], 0) for i in range(CHUNKS)]
    statuses = setup.statuses("store", setup.batch(*rows))
    assert set(statuses) <= {OK, IO_ERROR, DROPPED}, statuses
    mount.set()
    # Whatever is there now under these names is whole; what is not there is a miss.
    targets = [(100 + i, [30 + 2 * i, 31 + 2 * i], 0) for i in range(CHUNKS)]
    for index, status in enumerate(setup.statuses("load", setup.batch(*targets))):
        assert status in (OK, NOT_FOUND)
        if status is OK:
            source, target = rows[index][1], targets[index][1]
            assert setup.memory[0].blocks(target) == setup.memory[0].blocks(source)
    check_all_is_well(setup)


def test_a_load_that_hangs_times_out_and_writes_nothing_later(
    setup: Setup, mount: FaultyMount
) -> None:
    mount.set(match="*.kv", stall_read_s=30)
    start = time.monotonic()
    statuses = setup.statuses("load", setup.batch(*TARGETS))
    assert statuses == [TIMED_OUT] * CHUNKS
    assert time.monotonic() - start < 3
    deadline = time.monotonic() + 5
    while not setup.engine.stats().hung_threads:  # a thread is given a moment's grace
        assert time.monotonic() < deadline
        time.sleep(0.01)
    setup.memory[0].randomize(99)  # the blocks are somebody else's now
    before = setup.memory[0].blocks(range(48))
    mount.set()  # the stalled reads return good data
    deadline = time.monotonic() + 10
    while setup.engine.stats().hung_threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    assert setup.memory[0].blocks(range(48)) == before


def test_lookups_that_hang_time_out(setup: Setup, mount: FaultyMount) -> None:
    mount.set(match="*.kv", stall_lookup_s=30)
    start = time.monotonic()
    statuses = setup.statuses("lookup", [setup.path(i) for i in range(CHUNKS)])
    assert statuses == [TIMED_OUT] * CHUNKS
    assert time.monotonic() - start < 2
    mount.set()
    check_all_is_well(setup)


def test_storage_that_hangs_holds_no_block_of_a_store(setup: Setup, mount: FaultyMount) -> None:
    mount.set(stall_lookup_s=30)
    setup.engine.submit_store(900, setup.batch(*((200 + i, [i], 0) for i in range(8))))
    start = time.monotonic()
    setup.engine.release([900])
    assert setup.engine.wait([900], Phase.RELEASED, 0)
    assert time.monotonic() - start < 0.5
    mount.set()
    assert setup.engine.drain(20)
    setup.engine.poll()
    check_all_is_well(setup)


def test_nothing_grows_over_many_faults(setup: Setup, mount: FaultyMount) -> None:
    process = psutil.Process()

    def burst(times: int) -> None:
        for i in range(times):
            setup.statuses("load", setup.batch(*TARGETS))
            setup.statuses("store", setup.batch((1000 + i % 7, [1], 0)))

    mount.set(read="EIO", write="EIO", probability=0.5)
    burst(30)
    threads, files, memory = process.num_threads(), process.num_fds(), process.memory_info().rss
    burst(200)
    assert process.num_threads() <= threads
    assert process.num_fds() <= files + 4
    assert process.memory_info().rss - memory < 32 << 20
    mount.set()
    check_all_is_well(setup)


def test_temp_files_of_failed_stores_are_gone(setup: Setup, mount: FaultyMount) -> None:
    mount.set(write="EIO")
    setup.statuses("store", setup.batch(*((300 + i, [i], 0) for i in range(8))))
    mount.set()
    check_all_is_well(setup)
    deadline = time.monotonic() + 10
    folder = Path(setup.root) / "ns" / "tmp"
    while list(folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
