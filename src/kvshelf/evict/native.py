"""The native walk over a shelf with its Python types; see native/include/kvshelf/shelf_sweep.h.

Threads: one thread calls, ``stop`` may be called from any. The GIL is released while it works.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvshelf.core import native as _native
from kvshelf.evict.limits import Amount

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


@dataclass(frozen=True, slots=True)
class Work:
    """What one call did.

    Attributes:
        finished: the pass is through; otherwise the next call goes on with it.
        folders: folders that were looked at.
        files: files that were looked at, one by one.
        spared: files that were to go, but had been used since the pass first saw them.
        faults: how often each errno came.
    """

    finished: bool
    folders: int
    files: int
    removed: Amount
    spared: int
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
            os.fspath(root), threads, files_per_second, band_files, removals_max
        )

    def set_namespaces(self, folders: Sequence[str]) -> None:
        """Say which folders of the root are namespaces; others are not looked into."""
        self._sweep.set_namespaces(list(folders))

    def set_clock(self, ahead_ns: int) -> None:
        """Say what to add to CLOCK_BOOTTIME, in nanoseconds, for the file system's time: from that
        ages count. Without a call, this machine's clock counts."""
        self._sweep.set_clock(ahead_ns)

    def scan(self, *, all_folders: bool, seconds_max: float) -> Work:
        """Count the chunks in folders that have changed, or in all and make the histogram anew.

        Ends a removal that is not finished.
        """
        return self._work(self._sweep.scan(all_folders, seconds_max))

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
        """Go on with it until the need is met, whoever frees the space."""
        return self._work(self._sweep.remove(need.files, need.bytes, seconds_max))

    def stop(self) -> None:
        """From now on every call returns within 100 ms, unless the storage hangs."""
        self._sweep.stop()

    def usage(self) -> dict[str, Amount]:
        """What is known to be on the shelf, by namespace."""
        return {
            folder: Amount(files, bytes_)
            for folder, listed, files, bytes_, _ in self._sweep.namespaces()
            if listed
        }

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

    def _work(self, report: Any) -> Work:
        finished, folders, files, removed, removed_bytes, spared, faults, names = report
        states = self._sweep.namespaces() if names else ()
        return Work(
            finished=finished,
            folders=folders,
            files=files,
            removed=Amount(removed, removed_bytes),
            spared=spared,
            faults=faults,
            names=tuple(Names(states[index][0], rank, tuple(n)) for index, rank, n in names),
        )
