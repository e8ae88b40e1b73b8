"""The scheduler's side: which chunks the shelf has, which a request loads and which it stores.

Everything here runs on the scheduler's thread and must never wait: answers come from
``Presence``; questions that it cannot answer are collected during a step, sent to the native
lookup threads at its end, and answered RETRY meanwhile. No file-system call is made here.

    lookup -> Presence -> HIT, MISS
                       -> unknown: wanted -> on_schedule_end -> Shelf -> poll -> Presence
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any

from typing_extensions import override
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadingManager,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)

from kvshelf import metrics
from kvshelf.engine import FileStatus, JobKind, JobResult, Phase
from kvshelf.shelf import Shelf
from kvshelf.vllm import compat
from kvshelf.vllm.faultlog import FaultLog
from kvshelf.vllm.presence import Answer, Presence
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.specs import ChunkKeysSpec
from kvshelf.vllm.stats import StatsSink

logger = init_logger(__name__)

# Names for the hot path of lookups, which runs once a key: an attribute of an enum is slow.
_HIT, _MISS, _PENDING = Answer.HIT, Answer.MISS, Answer.PENDING
_FOUND, _ABSENT, _LATER = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY

# Where lookups are usually answered sooner than this, the first question of a step waits for them
# so long, once: a request then starts to load in its first step instead of its second.
PROMPT_ANSWER_SECONDS = 0.0005


class KvshelfManager(OffloadingManager):
    """Source: vLLM's OffloadingManager (vllm/v1/kv_offload/base.py). One thread: the scheduler's.

    Args:
        shelf: without block memory; used for lookups and touches only. Closed by ``shutdown``.
        presence: what is known about keys.
        num_workers: how many ranks must have a chunk before it counts as published.
        emit_events: whether vLLM publishes KV events.
    """

    def __init__(
        self, shelf: Shelf, presence: Presence, *, num_workers: int, emit_events: bool
    ) -> None:
        self._shelf = shelf
        self._presence = presence
        self._answers = presence.answers  # the hot path's own reference
        self._num_workers = num_workers
        self._emit_events = emit_events
        self._wanted: list[bytes] = []
        self._in_flight: dict[int, tuple[bytes, ...]] = {}
        self._next_job_id = 0
        self._polled = False  # results were fetched in this step
        self._usual_seconds = 0.0  # of the last lookups
        self._publishing: dict[bytes, int] = {}  # key -> workers that have published it
        self._published: list[bytes] = []  # for events
        self._to_heal: set[bytes] = set()  # keys that failed to load and are not stored anew yet
        self._stats = StatsSink()
        self._faults = FaultLog(logger)

    @override
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        answer = self._answers.get(key)
        if answer is _PENDING and not self._polled:
            self._fetch_answers()
            answer = self._answers.get(key, _PENDING)
        if answer is _HIT:
            return _FOUND
        if answer is _MISS:
            return _ABSENT
        if answer is None:
            self._answers[key] = _PENDING
            self._wanted.append(key)
        return _LATER

    def prefetch(self, keys: Iterable[bytes]) -> None:
        """Ask for a new request's keys before the scheduler does."""
        answers = self._answers
        wanted = [key for key in keys if key not in answers]
        if wanted:
            self._presence.pending(wanted)
            self._wanted += wanted
            self._submit_lookup()

    @override
    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> ChunkKeysSpec:
        self.touch(keys, req_context)
        return ChunkKeysSpec(tuple(keys))

    @override
    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        try:
            self._shelf.touch(tuple(keys))
        except Exception as error:  # only the order of eviction suffers
            self._faults.fault("touch", f"{type(error).__name__}: {error}")

    @override
    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput:
        """Offer what is not known to be stored. Never None: a full buffer drops in the worker."""
        is_stored = self._presence.is_stored
        wanted = [key for key in keys if not is_stored(key)]
        for key in wanted:
            self._presence.storing(key)
            self._publishing.pop(key, None)
        return PrepareStoreOutput(
            keys_to_store=wanted, store_spec=ChunkKeysSpec(wanted), evicted_keys=[]
        )

    @override
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        # Every chunk is offered again, so that recomputed ones are stored anew; see compat.
        return RequestOffloadingContext(policy=compat.request_level_policy())

    @override
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        if self._wanted:
            self._submit_lookup()
        if self._in_flight and not self._polled:
            self._fetch_answers()
        self._polled = False
        self._presence.expire(time.monotonic())

    def absorb(self, report: WorkerReport) -> None:
        """Take in what the workers report, before vLLM hears of the finished jobs."""
        now = time.monotonic()
        for key in report.failed:
            self._presence.failed(key, now)
            self._to_heal.add(key)
        for key in report.not_stored:
            self._presence.not_stored(key)
            self._publishing.pop(key, None)
        for key, news in report.published.items():
            workers = news + self._publishing.pop(key, 0)
            if workers < self._num_workers:
                self._publishing[key] = workers
                continue
            self._presence.found(key, now)
            if key in self._to_heal:
                self._to_heal.remove(key)
                self._stats.count(metrics.HEALED_CHUNKS)
            if self._emit_events:
                self._published.append(key)
        self._stats.absorb(report)

    @override
    def take_events(self) -> Iterable[Any]:
        if self._published:
            keys, self._published = self._published, []
            yield compat.stored_event(keys)

    @override
    def reset_cache(self) -> None:
        """Forget what is known, not what is stored: the shelf belongs to other engines too."""
        self._presence.forget()
        self._wanted.clear()
        self._publishing.clear()
        self._published.clear()
        self._to_heal.clear()

    @override
    def get_stats(self) -> Any:
        return self._stats.take()

    @override
    def shutdown(self) -> None:
        self._shelf.close(timeout_seconds=1.0)

    def _submit_lookup(self) -> None:
        job_id, self._next_job_id = self._next_job_id, self._next_job_id + 1
        keys, self._wanted = tuple(self._wanted), []
        try:
            self._shelf.submit_lookup(job_id, keys)
        except Exception as error:  # whatever it is, it must not end vLLM's scheduler
            self._faults.fault("submit lookup", f"{type(error).__name__}: {error}")
            now = time.monotonic()
            for key in keys:
                self._presence.unanswered(key, now)
            self._stats.count(metrics.LOOKUPS, "error", by=len(keys))
            return
        self._in_flight[job_id] = keys

    def _fetch_answers(self) -> None:
        self._polled = True
        if self._usual_seconds < PROMPT_ANSWER_SECONDS:
            self._shelf.wait(tuple(self._in_flight), Phase.FINISHED, PROMPT_ANSWER_SECONDS)
        for result in self._shelf.poll():
            if result.kind is JobKind.LOOKUP:
                self._apply(self._in_flight.pop(result.job_id), result)

    def _apply(self, keys: tuple[bytes, ...], result: JobResult) -> None:
        now = time.monotonic()
        self._usual_seconds += (result.seconds - self._usual_seconds) / 8
        presence, counts = self._presence, dict.fromkeys(metrics.LOOKUP_RESULTS, 0)
        for key, status in zip(keys, result.statuses, strict=True):
            if status is FileStatus.OK:
                presence.found(key, now)
                counts["hit"] += 1
            elif status is FileStatus.NOT_FOUND:
                presence.missed(key, now)
                counts["miss"] += 1
            else:
                presence.unanswered(key, now)
                counts["timeout" if status is FileStatus.TIMED_OUT else "error"] += 1
        for label, count in counts.items():
            if count:
                self._stats.count(metrics.LOOKUPS, label, by=count)
        self._stats.observe(metrics.LOOKUP_SECONDS, result.seconds)
