"""The engine's contract: it moves bytes between block memory and chunk files, in batches.

An engine knows paths, blocks and memory; what a key means is the shelf's business. Flow:

    submit_store / submit_load / submit_lookup -> (native threads) -> poll -> JobResult

- Submission checks its arguments, copies what it needs and returns; it never waits for I/O.
- Results come back only by ``poll`` or ``wait``; no native thread ever calls Python.
- What happens to one file is data (``FileStatus``), never an exception.
- All methods are thread-safe. A job id is in use from its submission until its FINISHED result has
  been returned by ``poll`` or ``wait``.

Memory safety: a load writes into block memory only while its job is unfinished. Once a result says
TIMED_OUT or CANCELLED, nothing of that job is written any more, however late the file system
answers. A store reads block memory only until its RELEASED result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

JobId = int


class FileStatus(IntEnum):
    """What became of one chunk file in a job. Values are those of native status.h."""

    OK = 0  # loaded and verified; stored (or already there); found
    NOT_FOUND = 1  # no such file, or it does not hold the wanted blocks
    CORRUPT = 2  # short, damaged or not a chunk file; removed if the engine may
    # A sound chunk file of another namespace, key, rank or geometry; or of a later format version,
    # which is never removed.
    FOREIGN = 3
    IO_ERROR = 4  # a system call failed; JobResult.errnos says how
    TIMED_OUT = 5  # the job's deadline passed first
    CANCELLED = 6  # cancel() or close() came first, or a lookup that another made useless
    DROPPED = 7  # a store that was given up: no room, too long in the queue, or release()


class JobKind(Enum):
    STORE = "store"
    LOAD = "load"
    LOOKUP = "lookup"
    PROBE = "probe"


class Phase(Enum):
    """RELEASED: a store no longer needs block memory. FINISHED: the last word on the job."""

    RELEASED = "released"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Pages:
    """One layer's pages: block ``i`` is ``page_bytes`` at ``address + i * stride_bytes``."""

    address: int
    stride_bytes: int
    page_bytes: int


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """The block memory of one KV cache group: its layers' pages in the order of the file."""

    pages: tuple[Pages, ...]
    num_blocks: int

    @property
    def block_bytes(self) -> int:
        return sum(page.page_bytes for page in self.pages)


@dataclass(frozen=True, slots=True)
class Batch:
    """The chunk files of one job, as columns of n >= 1 rows.

    Attributes:
        paths: paths relative to the root, from ``kvshelf.disk.layout``; no ``..``, not absolute.
        keys: what each header must say (12 to 128 bytes).
        groups: int32[n], index into the engine's group memories.
        first_blocks: int32[n], index within the chunk of the first block that is moved.
        block_counts: int32[n], number of blocks moved, each >= 1.
        block_ids: int32[sum(block_counts)], rows of block memory, file after file.
    """

    paths: Sequence[str]
    keys: Sequence[bytes]
    groups: NDArray[np.int32]
    first_blocks: NDArray[np.int32]
    block_counts: NDArray[np.int32]
    block_ids: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class JobResult:
    """One report on a job.

    Attributes:
        statuses: one per file. In a RELEASED report OK means "the bytes were taken".
        errnos: one per file, 0 where the status is not IO_ERROR.
        payload_bytes: bytes moved for files that are OK (0 for lookups).
        seconds: from submission to this report.
    """

    job_id: JobId
    kind: JobKind
    phase: Phase
    statuses: tuple[FileStatus, ...]
    errnos: tuple[int, ...]
    payload_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine's gauges and totals since it was opened."""

    queued_loads: int = 0  # files waiting for a thread
    queued_stores: int = 0
    queued_lookups: int = 0
    queued_touches: int = 0
    write_buffer_used_bytes: int = 0
    hung_threads: int = 0  # abandoned in the kernel and not yet back
    touched: int = 0  # files whose time of use was renewed
    touches_dropped: int = 0
    removed_bad: int = 0  # CORRUPT or FOREIGN files removed
    stored_payload_bytes: int = 0  # of chunks that stores published
    stored_file_bytes: int = 0  # of their files: fewer if they are packed
    direct: bool = False  # whether O_DIRECT is in use


class Engine(Protocol):
    """The contract, stated in full by ``kvshelf.testing.EngineTests``.

    Constructed as ``Engine(root, groups, config, namespace=..., rank=...)``:
        root: an existing directory; paths in batches are relative to it.
        config: an ``EngineConfig`` (``kvshelf.engine.config``).
        groups: block memory per group; empty for an engine that only looks up and touches. The
            memory must outlive the engine or a ``close()`` that returned True.
        namespace: 32 bytes, written to and demanded of every header.
        rank: the worker's rank, likewise.
        device: where block memory lies: "cpu", or "cuda:N" (its copies go by DMA).
    """

    def submit_store(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        """Queue a store of ``batch`` from block memory.

        A chunk that is there already is OK, and only its header is read. What else has its path is
        CORRUPT or FOREIGN, as for a load; if it is a regular file and ``remove_bad`` says so, it is
        removed instead and the chunk is stored. NOT_FOUND: what has the path cannot be seen, or is
        a chunk that lacks the blocks and is not removed.

        On a GPU, copies begin after what is queued on ``stream`` (a CUstream as a number, 0 for
        the default stream) at the time of the call: the kernels that write the blocks.

        Reports RELEASED once no file needs block memory any more (each file's bytes taken, or
        DROPPED), then FINISHED once every taken file is published or given up. Without
        ``write_behind`` both come together, RELEASED first.

        Raises:
            ValueError: columns of different lengths, an id or group out of range, a bad path.
                Checked before anything is queued.
            EngineClosedError: after close().
        """

    def submit_load(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        """Queue a load of ``batch`` into block memory; loads go before stores.

        On a GPU, copies begin after what is queued on ``stream``: the clearing of the blocks.

        A file is OK only if every wanted byte was read and verified; blocks of other files of the
        job are not affected by one that fails. The contents of blocks whose file failed are
        undefined. Raises as submit_store.
        """

    def submit_lookup(self, job_id: JobId, paths: Sequence[str]) -> None:
        """Queue existence probes, in parallel: OK or NOT_FOUND a path. Raises as submit_store."""

    def submit_lookup_keys(
        self,
        job_id: JobId,
        folders: Sequence[str],
        keys: Sequence[bytes],
        runs: Sequence[int] = (),
        mask: bytes = b"",
    ) -> None:
        """The same for the chunk of each key in each rank's folder, key after key.

        ``runs`` are lengths of runs of keys, from the first key on, of which only those before the
        first missing one are of use: what comes after it may be CANCELLED, not looked at.
        ``mask``: the chunks are those of the masked keys (``kvshelf.disk.keys.masked``).

        Names are those of ``kvshelf.disk.layout.chunk_path_in``; made in the background, so that a
        lookup of 4,096 keys takes a fraction of a millisecond of the caller's thread.
        """

    def submit_probe(self, job_id: JobId, paths: Sequence[str], bytes_max: int) -> None:
        """Read up to ``bytes_max`` of each file, into nothing, on the threads of lookups.

        OK or NOT_FOUND a path; payload_bytes and seconds say how fast storage is.
        """

    def touch(self, paths: Sequence[str]) -> None:
        """Mark files as used now, in the background, if their last use is touch_interval_seconds
        ago. No report.

        Sets the access and the modification time as docs/layout.md ("Times of a chunk file") says.
        A last use ahead of the file system's clock is renewed too.
        """

    def touch_keys(
        self,
        folders: Sequence[str],
        keys: Sequence[bytes],
        times_ns: Sequence[int],
        *,
        always: bool = False,
        mask: bytes = b"",
    ) -> None:
        """Give the chunk of each key, in each rank's folder, a time of use of its own.

        In the background and without a report, as ``touch``; names and ``mask`` as in
        ``submit_lookup_keys``.

        Args:
            times_ns: one a key, nanoseconds since 1970 by this machine's CLOCK_REALTIME, above 0.
            always: also where the last use is not older by touch_interval_seconds; it may then
                go back.
        """

    def set_clock(self, ahead_ns: int) -> None:
        """Say what the file system's clock is: by that one touches are written.

        Args:
            ahead_ns: nanoseconds to add to CLOCK_BOOTTIME (``kvshelf.disk.clock``). Without a call,
                touches are written by this machine's clock.
        """

    def poll(self) -> list[JobResult]:
        """All reports since the last call, oldest first. Never waits; cheap when there are none."""

    def wait(self, job_ids: Sequence[JobId], phase: Phase, timeout_seconds: float) -> bool:
        """Wait until all these jobs have reached ``phase`` (a report may still be unpolled).

        Ids that are unknown or done count as reached. Returns False if the timeout came first.
        Releases the GIL.
        """

    def release(self, job_ids: Sequence[JobId]) -> None:
        """Make these stores let go of block memory now: files not yet taken are DROPPED.

        Waits only for copies that are under way (memory speed, no storage). After it returns,
        ``wait(job_ids, Phase.RELEASED, 0)`` is True.
        """

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        """Give up files of these jobs that no thread has begun: CANCELLED. Jobs still report."""

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until no job is unfinished and no touch waits. False if the timeout came first."""

    def stats(self) -> EngineStats: ...

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Cancel what has not begun, wait for what has, end the threads. Idempotent.

        Returns False if a thread still hangs in the kernel; it is left behind and touches nothing
        of the caller's when it comes back.
        """


@dataclass(slots=True)
class BatchBuilder:
    """Collects rows of a ``Batch``. Not thread-safe; owned by the caller that fills it."""

    paths: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    first_blocks: list[int] = field(default_factory=list)
    block_counts: list[int] = field(default_factory=list)
    block_ids: list[NDArray[np.int32]] = field(default_factory=list)

    def add(
        self, path: str, key: bytes, group: int, first_block: int, block_ids: NDArray[np.int32]
    ) -> None:
        """Append one file: ``block_ids`` are rows of block memory for consecutive chunk blocks."""
        self.paths.append(path)
        self.keys.append(key)
        self.groups.append(group)
        self.first_blocks.append(first_block)
        self.block_counts.append(len(block_ids))
        self.block_ids.append(block_ids)

    def build(self) -> Batch:
        """The columns; the builder may not be used again."""
        if len(self.block_ids) == 1:  # to join takes a microsecond
            ids = self.block_ids[0]
        else:
            ids = np.concatenate(self.block_ids or [np.empty(0, dtype=np.int32)])
        return Batch(
            paths=self.paths,
            keys=self.keys,
            groups=np.asarray(self.groups, dtype=np.int32),
            first_blocks=np.asarray(self.first_blocks, dtype=np.int32),
            block_counts=np.asarray(self.block_counts, dtype=np.int32),
            block_ids=ids.astype(np.int32, copy=False),
        )
