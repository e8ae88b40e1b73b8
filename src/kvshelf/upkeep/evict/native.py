"""The native walk over a shelf with its Python types; see native/include/kvshelf/shelf_sweep.h.

Threads: one thread calls, ``stop`` may be called from any. The GIL is released while it works.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvshelf.core import native as _native
from kvshelf.disk.junk import JUNK_NAMES, JUNK_PREFIXES, JUNK_SUFFIXES
from kvshelf.disk.keys import ChunkKey, make_key
from kvshelf.disk.layout import CHUNK_SUFFIX
from kvshelf.disk.threads import NO_THREAD
from kvshelf.errors import ResourceError
from kvshelf.upkeep.evict.limits import Amount, Usage
from kvshelf.upkeep.evict.report import Held

NEVER_NS = -(2**63)  # before any time
AGE_BUCKETS: int = _native.AGE_BUCKETS
# Begin of each bucket of ages in seconds, and the end of the last.
BUCKET_EDGES_SECONDS: NDArray[np.float64] = 1e-9 * np.array(
    [_native.age_bucket_begin(bucket) for bucket in range(AGE_BUCKETS + 1)], dtype=np.float64
)


@dataclass(frozen=True, slots=True)
class Names:
    """Files of one rank of a namespace that were removed."""

    folder: str
    rank: int
    names: tuple[str, ...]

    def keys(self) -> list[ChunkKey]:
        """Of the chunks."""
        parts = (name.removesuffix(CHUNK_SUFFIX).partition("-g") for name in self.names)
        return [make_key(bytes.fromhex(digits), int(group)) for digits, _, group in parts]


@dataclass(frozen=True, slots=True)
class Work:
    """What one call did.

    Attributes:
        finished: the pass is through; otherwise the next call goes on with it.
        folders: folders that were looked at.
        files: files that were looked at, one by one.
        spared: files that were to go, but had been used since the pass first saw them.
        refused: files that were to go, and that the file system did not let go. They are held.
        faults: how often each errno came.
    """

    finished: bool
    folders: int
    files: int
    removed: Amount
    spared: int
    refused: int
    faults: dict[int, int]
    names: tuple[Names, ...]


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram of last uses: one row a namespace, class and bucket of ages.

    Attributes:
        folders: names of namespaces, by index.
        namespace: int64, index into ``folders``.
        reused: whether the chunks were used again after they were stored.
        bucket: int64, index into ``BUCKET_EDGES_SECONDS``.
        last_use_ns: int64, of each namespace.
        time_ns: the time from which ages count.
        coverage: the share of the shelf's folders that is counted.
    """

    folders: tuple[str, ...]
    namespace: NDArray[np.int64]
    reused: NDArray[np.bool_]
    bucket: NDArray[np.int64]
    files: NDArray[np.int64]
    bytes: NDArray[np.int64]
    last_use_ns: NDArray[np.int64]
    time_ns: int
    coverage: float

    def estimate(self) -> dict[str, Amount]:
        """What is on the shelf, by namespace, if the folders that are counted are a sample."""
        files, bytes_ = (
            np.bincount(self.namespace, column, len(self.folders)) / self.coverage
            for column in (self.files, self.bytes)
        )
        pairs = zip(files.astype(int).tolist(), bytes_.astype(int).tolist(), strict=True)
        return dict(zip(self.folders, (Amount(*pair) for pair in pairs), strict=True))


class Sweep:
    """Walks one shelf.

    Args:
        root: the shelf's directory; the caller has checked its marker.
        threads: that look at files, with low priority.
        files_per_second: stats and removals together; 0: no limit.
        band_files: candidates near the cut that are remembered, some 120 bytes each.
        removals_max: a call returns after so many removals.

    Raises:
        OSError: the root cannot be opened.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        threads: int = 4,
        files_per_second: float = 0,
        band_files: int = 131_072,
        removals_max: int = 16_384,
    ) -> None:
        self._sweep = _native.ShelfSweep(
            os.fspath(root),
            threads,
            files_per_second,
            band_files,
            removals_max,
            sorted(JUNK_NAMES),
            JUNK_PREFIXES,
            JUNK_SUFFIXES,
        )
        self._usage: Usage | None = None  # as of the last call that changed it

    def set_namespaces(self, folders: Sequence[str]) -> None:
        """Say which folders of the root are namespaces; others are not looked into."""
        self._usage = None
        self._sweep.set_namespaces(list(folders))

    def set_clock(self, ahead_ns: int) -> None:
        """Say what to add to CLOCK_BOOTTIME, in nanoseconds, for the file system's time: from that
        ages count. Without a call, this machine's clock counts."""
        self._sweep.set_clock(ahead_ns)

    def scan(self, *, all_folders: bool, seconds_max: float) -> Work:
        """Count the chunks in folders that have changed, or in all and make the histogram anew.

        Ends a removal that is not finished.

        Raises:
            ResourceError: no thread is to be had.
        """
        return self._work(self._called(self._sweep.scan, all_folders, seconds_max))

    def begin_removal(
        self, cuts: NDArray[np.int64], *, dry_run: bool = False, report_names: bool = False
    ) -> None:
        """Begin to remove.

        Args:
            cuts: int64[namespaces, 2, 2]: for each class (not used again, used again) the times in
                ns before which chunks surely and maybe go; ``NEVER_NS`` keeps all.
        """
        array = np.ascontiguousarray(cuts, dtype=np.int64)
        self._sweep.begin_removal(array, dry_run, report_names)

    def remove(self, need: Amount, seconds_max: float) -> Work:
        """Go on with it until the need is met, whoever frees the space.

        Raises:
            ResourceError: no thread is to be had.
        """
        return self._work(self._called(self._sweep.remove, need.files, need.bytes, seconds_max))

    def stop(self) -> None:
        """From now on every call returns within 100 ms, unless the storage hangs."""
        self._sweep.stop()

    def usage(self) -> Usage:
        """What is known to be on the shelf, by namespace. Made once between two walks."""
        if self._usage is None:
            self._usage = Usage(
                (folder, Amount(files, bytes_))
                for folder, listed, files, bytes_, _ in self._sweep.namespaces()
                if listed
            )
        return self._usage

    def total(self) -> Amount:
        return self.usage().total

    def newest_use_ns(self) -> int:
        return int(self.buckets().last_use_ns.max(initial=0))

    def sampled_usage(self) -> dict[str, Amount]:
        """An estimate of what is on the shelf, by namespace, from the folders scanned so far."""
        buckets = self.buckets()
        # What is known may be more than the sample: a removal walks through all folders.
        return buckets.estimate() if buckets.coverage else self.usage()

    def counts_what_is_gone(self) -> bool:
        """Whether others have removed chunks that the histogram has; what we remove leaves it."""
        there = self.total().files - self.held().amount.files
        return there < int(self.buckets().files.sum())

    def unseen(self) -> int:
        """Folders that the last scan could not look into."""
        return int(self._sweep.unseen())

    def held(self) -> Held:
        """What the file system refused to remove since ``release_held``. It counts as usage, and
        no removal tries it again."""
        files, bytes_, by_errno, examples = self._sweep.held()
        return Held(Amount(files, bytes_), by_errno, tuple(map(os.fsdecode, examples)))

    def release_held(self) -> None:
        """Let removal try again what it could not remove. Not while a scan of all is unfinished."""
        self._sweep.release_held()

    def coverage(self) -> float:
        """The share of the shelf's folders that the histogram counts."""
        return float(self._sweep.coverage())

    def buckets(self) -> Buckets:
        """The histogram of the last scan of all folders, or of the first that is in progress."""
        rows = self._sweep.buckets()
        states = self._sweep.namespaces()
        return Buckets(
            folders=tuple(state[0] for state in states),
            namespace=rows[:, 0],
            reused=rows[:, 1] != 0,
            bucket=rows[:, 2],
            files=rows[:, 3],
            bytes=rows[:, 4],
            last_use_ns=np.array([state[4] for state in states], dtype=np.int64),
            time_ns=self._sweep.histogram_time_ns(),
            coverage=self._sweep.coverage(),
        )

    def foreign(self) -> tuple[int, tuple[str, ...]]:
        """How much lies there that is no chunk, and a few paths beneath the root."""
        count, examples = self._sweep.foreign()
        return count, tuple(map(os.fsdecode, examples))

    def _called(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BlockingIOError as error:  # EAGAIN of pthread_create(3): nothing else is thrown so
            raise ResourceError(NO_THREAD) from error

    def _work(self, report: Any) -> Work:
        finished, folders, files, removed, removed_bytes, spared, refused, faults, names = report
        self._usage = None
        states = self._sweep.namespaces() if names else ()
        return Work(
            finished=finished,
            folders=folders,
            files=files,
            removed=Amount(removed, removed_bytes),
            spared=spared,
            refused=refused,
            faults=faults,
            names=tuple(Names(states[index][0], rank, tuple(n)) for index, rank, n in names),
        )
