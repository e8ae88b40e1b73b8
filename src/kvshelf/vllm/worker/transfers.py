"""Jobs between block memory and chunk files: worker and tier begin, count and log them alike.

store, load -> Shelf -> ended -> Outcomes -> take_report
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from kvshelf.engine import FileStatus, JobKind, JobResult
from kvshelf.faultlog import FaultLog
from kvshelf.shelf import Chunk, Routes, Shelf
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.worker.outcomes import Outcomes


class Transfers:
    """One thread: its owner's. Nothing waits for storage but ``close``.

    A job that the engine refuses is a fault like any other, not a crash of vLLM: it is counted
    once a chunk and logged once a minute.

    Args:
        shelf: with block memory. Its owner polls it and hands what is FINISHED to ``ended``.
        current_stream: the device stream that vLLM queues its work on, as a number.

    Attributes:
        stores: job -> its chunks and their roots, of the stores that are not FINISHED.
        loads: likewise of the loads.
        outcomes: what became of chunks, also of those that were in no job.
    """

    def __init__(
        self, shelf: Shelf, logger: logging.Logger, current_stream: Callable[[], int] = lambda: 0
    ) -> None:
        self._shelf = shelf
        self._current_stream = current_stream
        self._faults = FaultLog(logger)
        self.outcomes = Outcomes(self._faults, shelf)
        self.stores: dict[int, tuple[Sequence[Chunk], Routes]] = {}
        self.loads: dict[int, tuple[Sequence[Chunk], Routes]] = {}

    def store(self, job_id: int, chunks: Sequence[Chunk]) -> bool:
        """Begin to store; False if there is nothing to store, or the engine refused."""
        if not chunks:
            return False
        try:
            routes = self._shelf.submit_store(job_id, chunks, self._current_stream())
        except Exception as error:
            self._refused(JobKind.STORE, error)
            self.drop(chunk.key for chunk in chunks)
            return False
        self.stores[job_id] = chunks, routes
        return True

    def load(self, job_id: int, chunks: Sequence[Chunk]) -> bool:
        """Begin to load; False if there is nothing to load, or the engine refused."""
        if not chunks:
            return False
        try:
            routes = self._shelf.submit_load(job_id, chunks, self._current_stream())
        except Exception as error:
            self._refused(JobKind.LOAD, error)
            self.outcomes.load_refused([chunk.key for chunk in chunks])
            return False
        self.loads[job_id] = chunks, routes
        self.outcomes.load_begins(job_id)
        return True

    def drop(self, keys: Iterable[bytes]) -> None:
        """Chunks that are offered for storing are not even tried."""
        for key in keys:
            self.outcomes.store_outcome(key, FileStatus.DROPPED, 0)

    def ended(self, result: JobResult) -> Sequence[Chunk]:
        """Take in what became of a FINISHED job. Its chunks, in the order of the statuses."""
        is_load = result.kind is JobKind.LOAD
        chunks, routes = (self.loads if is_load else self.stores).pop(result.job_id)
        ended = self.outcomes.load_ended if is_load else self.outcomes.store_ended
        ended([chunk.key for chunk in chunks], routes, result)
        return chunks

    def take_report(self) -> WorkerReport | None:
        """What happened since the last call, or None if nothing did."""
        return self.outcomes.take(self._shelf.stats())

    def close(self, timeout_seconds: float) -> None:
        """Let write-behind finish, for so long at most, and close the shelf."""
        if not self._shelf.drain(timeout_seconds):
            self._faults.fault("shutdown", "stores not yet written are given up")
        self._shelf.close(timeout_seconds=1.0)

    def _refused(self, kind: JobKind, error: Exception) -> None:
        self._faults.fault(f"submit {kind.value}", f"{type(error).__name__}: {error}")
