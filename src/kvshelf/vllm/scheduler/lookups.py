"""Questions to the shelf that are under way: asked in batches, answered by polling.

    wanted, prefetch -> Shelf -> fetch -> ChunkTable, Breakers, Stats

Each root is asked by itself, so that nobody waits for one that does not answer.

Scheduler's thread only; nothing here waits for storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvshelf import metrics
from kvshelf.breaker import State
from kvshelf.engine import FileStatus, JobKind, JobResult, Phase
from kvshelf.faultlog import FaultLog
from kvshelf.vllm.compat import KeyRun
from kvshelf.vllm.scheduler.breakers import Breakers
from kvshelf.vllm.scheduler.chunk_table import ChunkTable
from kvshelf.vllm.scheduler.masked import MaskedShelf
from kvshelf.vllm.stats import StatsSink

# Where lookups are usually answered sooner than this, the first question of a step waits for them
# so long, once: a request then starts to load in its first step instead of its second.
PROMPT_ANSWER_SECONDS = 0.0005
# An answer that nobody fetched for so long, in a pause of the engine, says nothing any more.
STALE_SECONDS = 30.0
# Threads that hang in the storage say enough: no more probes are sent after them.
HUNG_THREADS_MAX = 8

ProbeDone = Callable[[JobResult], None]


@dataclass(slots=True)
class _Asked:
    """A lookup that is under way, in one root. ``is_late``: nobody waits for it any more."""

    root: int
    keys: Sequence[bytes]
    since: float
    is_late: bool = False


class Lookups:
    """
    Args:
        evicted: told of a key that was thought to be stored and is not there.
        wait_seconds: how long a request waits for an answer. After that its keys count as absent
            for now, and the answer, when it comes, serves the next request.
    """

    def __init__(
        self,
        shelf: MaskedShelf,
        table: ChunkTable,
        stats: StatsSink,
        breakers: Breakers,
        faults: FaultLog,
        *,
        evicted: Callable[[bytes], None],
        wait_seconds: float,
    ) -> None:
        self._shelf = shelf
        self._table = table
        self._stats = stats
        self._reading = breakers.reading
        self._faults = faults
        self._evicted = evicted
        self._wait_seconds = wait_seconds
        self._in_flight: dict[int, _Asked] = {}
        self._probes: dict[int, ProbeDone] = {}
        self._next_job_id = 0
        self._has_polled = False  # in this step
        self._usual_seconds = [0.0] * len(shelf.roots)  # of the last lookups there

    def prefetch(self, runs: Iterable[KeyRun]) -> None:
        """Ask for a new request's keys before the scheduler does.

        Those after a key that is known to be missing are not worth asking for, nor looking at.
        """
        prefixes: list[bytes] = []
        lengths: list[int] = []
        others: list[bytes] = []
        for run in runs:
            asked = self._table.ask(run.keys, is_prefix=run.is_prefix)
            if not run.is_prefix:
                others += asked
            elif asked:
                prefixes += asked
                lengths.append(len(asked))
        if prefixes or others:
            self._submit((*prefixes, *others), lengths)

    def fetch(self) -> None:
        """Take in what was answered; once a step."""
        if self._has_polled:
            return
        self._has_polled = True
        prompt = [
            job_id
            for job_id, asked in self._in_flight.items()
            if self._usual_seconds[asked.root] < PROMPT_ANSWER_SECONDS
        ]
        if prompt:
            self._shelf.inner.wait(prompt, Phase.FINISHED, PROMPT_ANSWER_SECONDS)
        for result in self._shelf.inner.poll():
            if result.kind is JobKind.LOOKUP:
                self._apply(self._in_flight.pop(result.job_id), result)
            elif result.kind is JobKind.PROBE:
                self._probes.pop(result.job_id)(result)

    def end_step(self, now: float) -> None:
        if self._table.wanted:
            self._submit(self._table.take_wanted(), ())
        if self._in_flight or self._probes:
            self.fetch()
            self._give_up_waiting(now)
        self._has_polled = False

    def probe(self, keys: Sequence[bytes], bytes_max: int, done: ProbeDone) -> bool:
        """Measure storage by these chunks' files.

        False if too many threads hang there already, or the engine refused.
        """
        roots = {self._shelf.root_of(key) for key in keys}
        return self._probe(roots, lambda job: self._shelf.submit_probe(job, keys, bytes_max), done)

    def ping(self, root: int, done: ProbeDone) -> bool:
        """See whether a root answers at all. False likewise."""
        return self._probe({root}, lambda job: self._shelf.inner.submit_ping(job, root), done)

    def _probe(self, roots: set[int], submit: Callable[[int], None], done: ProbeDone) -> bool:
        if any(self._shelf.inner.stats_of(root).hung_threads >= HUNG_THREADS_MAX for root in roots):
            return False
        job_id, self._next_job_id = self._next_job_id, self._next_job_id + 1
        try:
            submit(job_id)
        except Exception as error:
            self._faults.fault("submit probe", f"{type(error).__name__}: {error}")
            return False
        self._probes[job_id] = done
        return True

    def _submit(self, keys: tuple[bytes, ...], runs: Sequence[int]) -> None:
        now = time.monotonic()
        for share in self._shelf.shares(keys, runs):
            job_id, self._next_job_id = self._next_job_id, self._next_job_id + 1
            try:
                self._shelf.submit_lookup(job_id, share.keys, share.runs, share.root)
            except Exception as error:  # whatever it is, it must not end vLLM's scheduler
                self._faults.fault("submit lookup", f"{type(error).__name__}: {error}")
                for key in share.keys:
                    self._table.unanswered(key, now)
                self._stats.count(metrics.LOOKUPS, "error", by=len(share.keys))
                continue
            self._in_flight[job_id] = _Asked(share.root, share.keys, now)

    def _give_up_waiting(self, now: float) -> None:
        for asked in self._in_flight.values():
            if now - asked.since < self._wait_seconds:
                break  # they are in the order of time
            if not asked.is_late:
                asked.is_late = True
                for key in asked.keys:
                    self._table.unanswered(key, now)
                self._reading[asked.root].fault("lookup: too late", now)

    def _apply(self, asked: _Asked, result: JobResult) -> None:
        now, root = time.monotonic(), asked.root
        if now - asked.since > STALE_SECONDS:
            for key in asked.keys:
                self._table.stale(key)
            return
        self._usual_seconds[root] += (result.seconds - self._usual_seconds[root]) / 8
        counts = self._learn(asked, result, now)
        for label, count in counts.items():
            if count:
                self._stats.count(metrics.LOOKUPS, label, by=count)
        self._stats.observe(metrics.LOOKUP_SECONDS, result.seconds)
        if asked.is_late:
            return  # told already, as a fault
        failed = next((label for label in ("error", "timeout") if counts[label]), "")
        if failed:
            self._reading[root].fault(f"lookup: {failed}", now)
        elif self._reading[root].state is State.CLOSED:
            # While one request tries, only its load decides: names may come from a cache.
            self._reading[root].success(now)

    def _learn(self, asked: _Asked, result: JobResult, now: float) -> dict[str, int]:
        """Each answer to the table; how many there are of each kind."""
        table, counts = self._table, dict.fromkeys(metrics.LOOKUP_RESULTS, 0)
        for key, status in zip(asked.keys, result.statuses, strict=True):
            if status is FileStatus.OK:
                table.found(key, now)
                counts["hit"] += 1
            elif status is FileStatus.NOT_FOUND:
                counts["miss"] += 1
                if table.missed(key, now, asked.since):
                    self._evicted(key)
            elif status is FileStatus.CANCELLED:
                table.unasked(key)
            else:
                table.unanswered(key, now)
                counts["timeout" if status is FileStatus.TIMED_OUT else "error"] += 1
        return counts
