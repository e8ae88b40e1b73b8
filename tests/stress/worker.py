"""One process of a stress run: random actions on a shelf, each checked against what its keys say.

An action is a function of the worker; what it did is counted on a board that outlives a SIGKILL.
More actions plug in by ``ACTIONS``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvshelf import Chunk, EngineConfig, FileStatus
from kvshelf.disk.keys import ChunkKey
from kvshelf.engine import Phase
from kvshelf.shelf import Shelf
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import State
from kvshelf.upkeep.scrub.findings import Finding, Kind
from kvshelf.upkeep.scrub.scrubber import Scrubber
from kvshelf.upkeep.scrub.settings import ScrubSettings
from tests.harness.codec import bad_pieces, decode
from tests.stress.content import (
    BLOCK_BYTES,
    BLOCKS,
    CHUNK_BYTES,
    IDENTITY,
    KEYS,
    PAGE_BYTES,
    key_of,
)

BATCH = 8  # chunks of a job
UNTOUCHED = 0xA5
WAIT_SECONDS = 60.0
# What the evictor lets stay. Stores bring all keys back again and again, so it never has done.
KEEP_BYTES = int(0.6 * KEYS * CHUNK_BYTES)
LIMITS = Limits(shelf_bytes=KEEP_BYTES, low_percent=80)
EVICT_SECONDS = 0.5  # of one action, at most
# As fast as it can, for so long; then the next one goes on from the cursor, whoever runs it.
SCRUB = ScrubSettings(megabytes_per_second=0, files_per_second=0, minutes=0.1 / 60)
_KEYS = frozenset(key_of(index) for index in range(KEYS))
CONFIG = EngineConfig(
    io_threads=4,
    load_only_threads=1,
    lookup_threads=4,
    piece_bytes=65536,
    step_bytes=16384,
    write_buffer_bytes=4 << 20,
    touch_interval_seconds=0.05,
    store_timeout_seconds=20.0,
    store_queue_seconds=20.0,
    load_timeout_seconds=20.0,
    load_stall_seconds=10.0,
    lookup_timeout_seconds=10.0,
)
COUNTERS = (
    "beat",  # time.monotonic() of the last action's end
    "operations",  # chunks stored, loaded, looked up, touched, removed, verified
    "bytes_verified",
    "hits",
    "misses",
    "dropped",
    "io_errors",
    "timed_out",
    "damaged",  # CORRUPT or FOREIGN, to a load or a scrub: never, for nobody damages anything
    "removed",
    "evictions",  # times that a limit was exceeded, and chunks went
    "evicted",
    "scrubs",  # passes through the whole shelf that came to their end
    "scrubbed",  # chunks that scrubs verified
    "bytes_scrubbed",
    "temp_files_cleaned",
    "descriptors_max",
)
_MISSES = (FileStatus.NOT_FOUND, FileStatus.CANCELLED)
_COLUMN = {
    FileStatus.OK: "hits",
    FileStatus.DROPPED: "dropped",
    FileStatus.IO_ERROR: "io_errors",
    FileStatus.TIMED_OUT: "timed_out",
    FileStatus.CORRUPT: "damaged",
    FileStatus.FOREIGN: "damaged",
    **dict.fromkeys(_MISSES, "misses"),
}


def count(kind: str) -> int:
    """Descriptors ("fd") or threads ("task") of this process."""
    return len(list(Path("/proc/self", kind).iterdir()))


def is_unlinked_nfs_file(finding: Finding) -> bool:
    """What an NFS client makes of a file that is removed while it is open."""
    return finding.kind is Kind.FOREIGN and Path(finding.path).name.startswith(".nfs")


class WrongByteError(AssertionError):
    """A loaded or stored byte is not what its key says."""


class Worker:
    """Two areas of block memory, each of ``BATCH`` chunks: one to store from, one to load into."""

    def __init__(self, root: Path, seed: int, content: NDArray[np.uint8], row: Any) -> None:
        self.root, self.content, self.row = root, content, row
        self.random = random.Random(seed)
        self.layers = [
            np.full((2 * BATCH * BLOCKS, size), UNTOUCHED, dtype=np.uint8) for size in PAGE_BYTES
        ]
        self.shelf = Shelf.of_arrays(root, IDENTITY, [self.layers], config=CONFIG)
        self.evictor = Evictor(
            root, LIMITS, files_per_second=0, threads=2, on_removed=self.note_removed
        )
        self.jobs = 0

    def count(self, counter: str, number: float = 1) -> None:
        self.row[COUNTERS.index(counter)] += number

    def some(self, most: int = BATCH) -> list[int]:
        return self.random.sample(range(KEYS), self.random.randint(1, most))

    def blocks(self, rows: slice) -> NDArray[np.uint8]:
        """A copy of rows of block memory, in the order of the file."""
        return np.concatenate([layer[rows] for layer in self.layers], axis=1)

    def part(self, index: int, slot: int, *, whole: bool) -> tuple[Chunk, int, slice]:
        """A chunk or a part of it in a slot of block memory: also its first block and its rows."""
        first = 0 if whole else self.random.randrange(BLOCKS)
        rows = slice(slot * BLOCKS + first, slot * BLOCKS + BLOCKS)
        ids = np.arange(rows.start, rows.stop, dtype=np.int32)
        return Chunk(key_of(index), ids, first), first, rows

    def submit_store(self, indices: list[int]) -> int:
        """Now and then only a chunk's last blocks, as a sliding window leaves them."""
        chunks = []
        for slot, index in enumerate(indices):
            chunk, first, rows = self.part(index, slot, whole=self.random.random() < 0.9)
            at = 0
            for layer, size in zip(self.layers, PAGE_BYTES, strict=True):
                layer[rows] = self.content[index, first:, at : at + size]
                at += size
            chunks.append(chunk)
        self.jobs += 1
        self.shelf.submit_store(self.jobs, chunks)
        return self.jobs

    def submit_load(self, indices: list[int]) -> tuple[int, list[tuple[int, int, slice]]]:
        chunks, wanted = [], []
        for layer in self.layers:
            layer[BATCH * BLOCKS :] = UNTOUCHED
        for slot, index in enumerate(indices, BATCH):
            chunk, first, rows = self.part(index, slot, whole=self.random.random() < 0.6)
            chunks.append(chunk)
            wanted.append((index, first, rows))
        self.jobs += 1
        self.shelf.submit_load(self.jobs, chunks)
        return self.jobs, wanted

    def finish(self, job: int) -> list[FileStatus]:
        if not self.shelf.wait([job], Phase.FINISHED, WAIT_SECONDS):
            raise TimeoutError(f"job {job} did not end in {WAIT_SECONDS} s")
        found = [r for r in self.shelf.poll() if r.job_id == job and r.phase is Phase.FINISHED]
        statuses = list(found[-1].statuses)
        self.count("operations", len(statuses))
        for status in statuses:
            self.count(_COLUMN[status])
        return statuses

    def check_loaded(self, wanted: list[tuple[int, int, slice]], found: list[FileStatus]) -> None:
        free = np.ones(2 * BATCH * BLOCKS, dtype=bool)
        free[: BATCH * BLOCKS] = False
        for (index, first, rows), status in zip(wanted, found, strict=True):
            free[rows] = False  # undefined, if the load failed
            if status is FileStatus.OK:
                self.compare(index, first, self.blocks(rows), "loaded")
        for layer in self.layers:
            if not (layer[free] == UNTOUCHED).all():
                raise WrongByteError("a load wrote into blocks that it was not given")

    def compare(self, index: int, first: int, found: NDArray[np.uint8], how: str) -> None:
        if not np.array_equal(found, self.content[index, first : first + len(found)]):
            raise WrongByteError(f"chunk {index} from block {first} on is wrong as {how}")
        self.count("bytes_verified", found.nbytes)

    def note_removed(self, folder: str, rank: int, keys: Sequence[ChunkKey]) -> None:
        """What the evictor says to be gone."""
        if (folder, rank) != (IDENTITY.folder, 0) or not _KEYS.issuperset(keys):
            raise AssertionError(f"the evictor removed what nobody stored: {folder} {rank} {keys}")
        self.count("evicted", len(keys))

    def note_finding(self, finding: Finding) -> None:
        """What a scrub says: of a sound shelf it finds but temp files of the killed."""
        if finding.kind is Kind.ORPHAN:
            self.count("temp_files_cleaned")
        elif finding.kind is Kind.FAULT:
            self.count("io_errors")
        elif not is_unlinked_nfs_file(finding):
            self.count("damaged")
            raise AssertionError(f"a scrub found {finding}")

    def run(self, stop: Any) -> None:
        names = list(ACTIONS)
        weights = [weight for weight, _ in ACTIONS.values()]
        column = COUNTERS.index("descriptors_max")
        while not stop.value:
            _, action = ACTIONS[self.random.choices(names, weights)[0]]
            action(self)
            self.row[COUNTERS.index("beat")] = time.monotonic()
            self.row[column] = max(self.row[column], count("fd"))
        self.evictor.close()
        del self.evictor  # it knows this worker, which knows it: its descriptors would stay open
        if not self.shelf.close(WAIT_SECONDS):
            raise TimeoutError("the engine did not close")


def store(worker: Worker) -> None:
    worker.finish(worker.submit_store(worker.some()))


def load(worker: Worker) -> None:
    job, wanted = worker.submit_load(worker.some())
    worker.check_loaded(wanted, worker.finish(job))


def both(worker: Worker) -> None:
    """A store and a load at once, mostly of the same chunks."""
    indices = worker.some()
    stored = worker.submit_store(indices)
    job, wanted = worker.submit_load(indices[::-1])
    worker.shelf.wait([stored, job], Phase.FINISHED, WAIT_SECONDS)
    reports = {r.job_id: r for r in worker.shelf.poll() if r.phase is Phase.FINISHED}
    for report in reports.values():
        worker.count("operations", len(report.statuses))
        for status in report.statuses:
            worker.count(_COLUMN[status])
    worker.check_loaded(wanted, list(reports[job].statuses))


def lookup(worker: Worker) -> None:
    worker.jobs += 1
    worker.shelf.submit_lookup(worker.jobs, [key_of(index) for index in worker.some(KEYS)])
    worker.finish(worker.jobs)


def touch(worker: Worker) -> None:
    indices = worker.some()
    worker.shelf.touch([key_of(index) for index in indices])
    worker.count("operations", len(indices))


def remove(worker: Worker) -> None:
    for index in worker.some(2):
        (worker.root / worker.shelf.path_of(key_of(index))).unlink(missing_ok=True)
        worker.count("removed")
        worker.count("operations")


def verify(worker: Worker) -> None:
    """Every byte of some files, by the format's own rules, apart from the engine and the scrub."""
    for index in worker.some(4):
        try:
            with (worker.root / worker.shelf.path_of(key_of(index))).open("rb") as file:
                data = file.read()
        except OSError:  # absent, or gone while it was read
            worker.count("misses")
            continue
        header = decode(data)
        payload = data[4096:][: header.payload_bytes]
        if bad_pieces(header, payload) or header.key != key_of(index):
            raise WrongByteError(f"the file of chunk {index} is damaged")
        found = np.frombuffer(payload, dtype=np.uint8).reshape(header.block_count, BLOCK_BYTES)
        worker.compare(index, header.first_block, found, "stored")
        worker.count("operations")


def scrub(worker: Worker) -> None:
    """A piece of a pass, as `kvshelf scrub`; others scrub at the same time."""
    scrubber = Scrubber(worker.root, SCRUB)
    for finding in scrubber.run():
        worker.note_finding(finding)
    worker.count("scrubs", scrubber.totals.finished)
    worker.count("scrubbed", scrubber.totals.files)
    worker.count("bytes_scrubbed", scrubber.totals.bytes)
    worker.count("operations", scrubber.totals.files)


def evict(worker: Worker) -> None:
    """Down to the low mark, as `kvshelf evict`; others evict at the same time."""
    end = time.monotonic() + EVICT_SECONDS
    state, removed = State.EVICTING, 0
    while state in (State.SCANNING, State.EVICTING) and time.monotonic() < end:
        report = worker.evictor.step(EVICT_SECONDS / 4)
        worker.count("io_errors", sum(report.faults.values()))
        state = report.state
        removed += report.removed.files
    worker.count("evictions", removed > 0)
    worker.count("operations", removed)


ACTIONS: dict[str, tuple[float, Callable[[Worker], None]]] = {
    "store": (5, store),
    "load": (8, load),
    "both": (3, both),
    "lookup": (3, lookup),
    "touch": (2, touch),
    "remove": (1, remove),
    "verify": (1, verify),
    "scrub": (0.5, scrub),
    "evict": (0.5, evict),
}
