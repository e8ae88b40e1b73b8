"""What workers tell the scheduler's process at each step, beside vLLM's list of finished jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import add, or_
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingWorkerMetadata,
)

from kvshelf.engine import FileStatus

# What is no fault of one chunk.
STORAGE_FAULTS = frozenset({FileStatus.IO_ERROR, FileStatus.TIMED_OUT})

# What a job says of a root: "load" or "store", the fault or "", and the root's index.
Outcome = tuple[str, str, int]
# errno of a store that failed for lack of room, and the root's index
NoRoom = tuple[int, int]
# (metric name, label values)
Series = tuple[str, tuple[str, ...]]


@dataclass(slots=True)
class WorkerReport:
    """News since the last report. ``merge`` joins those of several workers of one engine.

    Attributes:
        failed: keys whose load failed on a worker, for a fault of the chunk.
        unread: likewise, for a fault of the storage.
        loads: one a load job that ended: chunks, chunks loaded, seconds by which it lengthened the
            time in which this worker loaded at all.
        outcomes: one a job of a worker and root.
        no_room: one a job of a worker and root whose stores failed for lack of room.
        published: key -> ranks whose file of it is on the shelf now, a bit each (``1 << rank``).
        not_stored: keys whose store was dropped or failed on a worker.
        namespaces: folders in which workers store; each says it once.
        has_changed_weights: a worker saw other weights than it last read.
        has_changed_adapters: a worker loaded another adapter under an id that it knew.
        counters: increments.
        gauges: current values; those of several workers are added up.
        samples: observations for histograms.
    """

    failed: set[bytes] = field(default_factory=set)
    unread: set[bytes] = field(default_factory=set)
    loads: list[tuple[int, int, float]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    no_room: list[NoRoom] = field(default_factory=list)
    published: dict[bytes, int] = field(default_factory=dict)
    not_stored: set[bytes] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    has_changed_weights: bool = False
    has_changed_adapters: bool = False
    counters: dict[Series, float] = field(default_factory=dict)
    gauges: dict[Series, float] = field(default_factory=dict)
    samples: dict[Series, list[float]] = field(default_factory=dict)

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        series = (name, labels)
        self.counters[series] = self.counters.get(series, 0) + by

    def observe(self, name: str, value: float, *labels: str) -> None:
        self.samples.setdefault((name, labels), []).append(value)

    def is_empty(self) -> bool:
        """Gauges alone are no news: they ride along with the next report."""
        return not any(getattr(self, name) for name in _NEWS)

    def renamed(self, names: Callable[[Sequence[bytes]], Sequence[bytes]]) -> WorkerReport:
        """The same with other keys for the same chunks."""
        published = zip(names(list(self.published)), self.published.values(), strict=True)
        return replace(
            self,
            failed=set(names(list(self.failed))),
            unread=set(names(list(self.unread))),
            not_stored=set(names(list(self.not_stored))),
            published=dict(published),
        )

    def merge(self, other: WorkerReport) -> WorkerReport:
        def joined(name: str) -> Any:
            join = or_ if name == "published" else add
            return _joined(getattr(self, name), getattr(other, name), join)

        return WorkerReport(*map(joined, _NAMES))


_NAMES = tuple(each.name for each in fields(WorkerReport))
_NEWS = tuple(name for name in _NAMES if name != "gauges")


def _joined(one: Any, other: Any, join: Callable[[Any, Any], Any]) -> Any:
    """``join`` is for the values of dicts."""
    if isinstance(one, dict):
        both = {key: join(one[key], other[key]) for key in one.keys() & other.keys()}
        return {**one, **other, **both}
    return one | other if isinstance(one, set | bool) else one + other


@dataclass
class KvshelfWorkerMetadata(OffloadingWorkerMetadata):
    """vLLM's metadata with our report; vLLM's scheduler side reads the part that it knows."""

    report: WorkerReport = field(default_factory=WorkerReport)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KvshelfWorkerMetadata:
        base = OffloadingWorkerMetadata.aggregate(self, other)
        theirs = other.report if isinstance(other, KvshelfWorkerMetadata) else WorkerReport()
        return KvshelfWorkerMetadata(
            completed_jobs=base.completed_jobs,
            transfer_stats=base.transfer_stats,
            report=self.report.merge(theirs),
        )
