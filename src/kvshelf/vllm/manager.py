"""The scheduler's side: which chunks the shelf has, which a request loads and which it stores.

Everything here runs on the scheduler's thread and must never wait: answers come from
``Presence``; questions that it cannot answer are collected during a step, sent to the native
lookup threads at its end, and answered RETRY meanwhile. No file-system call is made here.

    lookup -> Presence -> HIT, MISS
                       -> unknown: Lookups -> Shelf -> poll -> Presence
    a hit  -> Admission -> load it, compute it, or measure the storage first
    faults -> Breakers -> a root that does not answer is left alone
    used, stored -> Touches; stored, gone -> Events; evicted by anybody -> Eviction -> Presence
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from typing_extensions import override
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
from kvshelf.config import Settings
from kvshelf.engine import FileStatus, JobResult
from kvshelf.evict.duty import EvictionDuty
from kvshelf.shelf import Shelf
from kvshelf.vllm import compat
from kvshelf.vllm.admission import MEASURED_CHUNKS, Admission, Verdict, spread
from kvshelf.vllm.bounded import drop_oldest
from kvshelf.vllm.breakers import Breakers
from kvshelf.vllm.events import Events
from kvshelf.vllm.evict import Eviction
from kvshelf.vllm.faultlog import FaultLog
from kvshelf.vllm.lookups import Lookups
from kvshelf.vllm.presence import Answer, Presence
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.requests import LeftAlone
from kvshelf.vllm.specs import ChunkKeysSpec
from kvshelf.vllm.stats import StatsSink
from kvshelf.vllm.touches import Touches

logger = compat.logger_of(__name__)

# Names for the hot path of lookups, which runs once a key: an attribute of an enum is slow.
_HIT, _MISS, _PENDING = Answer.HIT, Answer.MISS, Answer.PENDING
_FOUND, _ABSENT, _LATER = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY

# A measurement reads so much of each of MEASURED_CHUNKS files. A request waits for it for a share
# of the time that computing it takes, within bounds: a few steps, and what a user notices.
MEASURED_BYTES = 8 << 20
MEASURE_WAIT_SHARE = 0.1
MEASURE_WAIT_SECONDS = (0.025, 0.05)
# An eviction may be heard of so late: an NFS client may believe an old folder for a minute.
JOURNAL_SECONDS = 90.0
# A step forgets so many evicted keys: a millisecond or two of the scheduler's thread.
EVICTED_KEYS_A_STEP = 1024
# An engine without requests makes no steps. After so long without one, what is known may be old.
PAUSE_SECONDS = 0.1
# Keys that some workers have published and others not yet, or never.
PUBLISHING_KEYS_MAX = 65_536
# Keys that failed to load; others may store them anew, or nobody.
TO_HEAL_KEYS_MAX = 65_536
_NEVER = float("-inf")


class KvshelfManager(OffloadingManager):
    """Source: vLLM's OffloadingManager (vllm/v1/kv_offload/base.py). One thread: the scheduler's.

    Args:
        shelf: without block memory; used for lookups and touches only. Closed by ``shutdown``.
        presence: what is known about keys.
        settings: the user's.
        chunk_bytes: bytes of a chunk's files, all ranks'; groups' mean.
        chunk_tokens: tokens of a chunk.
        num_workers: how many ranks must have a chunk before it counts as published.
        emit_events: whether vLLM publishes KV events.
        duties: eviction in the background, one a root; none: this engine does not hear of any.
    """

    def __init__(
        self,
        shelf: Shelf,
        presence: Presence,
        settings: Settings,
        *,
        chunk_bytes: int,
        chunk_tokens: int,
        num_workers: int,
        emit_events: bool,
        duties: Sequence[EvictionDuty] = (),
    ) -> None:
        self._shelf = shelf
        self._presence = presence
        self._answers = presence.answers  # the hot path's own reference
        self._retry_seconds = settings.breaker_retry_seconds
        self._num_workers = num_workers
        self._every_rank = (1 << num_workers) - 1
        self._publishing: dict[bytes, int] = {}  # key -> ranks that have published it, a bit each
        self._published: OrderedDict[bytes, float] = OrderedDict()  # lately, and when
        self._evicted: deque[tuple[int, bytes]] = deque()  # (root, key) to be forgotten
        self._to_heal: dict[bytes, None] = {}  # failed to load and are not stored anew yet
        self._stats = StatsSink()
        self._faults = FaultLog(logger)
        self._breakers = Breakers(shelf, settings, self._stats, logger)
        self._events = Events(are_wanted=emit_events)
        self._touches = Touches(
            shelf,
            self._faults,
            chunk_tokens=chunk_tokens,
            interval_seconds=settings.touch_interval_seconds,
            keys_max=settings.presence_keys_max,
        )
        self._lookups = Lookups(
            shelf,
            presence,
            self._stats,
            self._breakers,
            self._faults,
            gone=self._events.gone,
            published=self._published,
            wait_seconds=settings.lookup_wait_seconds,
        )
        self._wanted = self._lookups.wanted  # likewise
        self.admission = Admission(
            min_hit_tokens=settings.min_hit_tokens,
            compare=settings.admission == "auto",
            chunk_bytes=chunk_bytes,
        )
        self._last_step = _NEVER
        self._measuring_since = _NEVER
        self._is_split = False  # workers use another namespace: of no use to store
        self._refused: set[str] = set()  # requests that compute what they could load
        self._left_alone = LeftAlone()
        self._reasons: set[str] = set()  # logged so far
        self._all_roots = frozenset(range(len(shelf.roots)))
        self._shut: frozenset[int] = frozenset()  # roots closed to the request that looks up
        self._eviction = Eviction(duties, shelf, self._stats, logger)

    def leave_alone(self, req_id: str, reason: str) -> None:
        """Load and store nothing of this request from now on. Call it after ``on_new_request``."""
        if not self._left_alone.add(req_id):
            return
        self._stats.count(metrics.REQUESTS_LEFT_ALONE, reason)
        if reason not in self._reasons:
            self._reasons.add(reason)
            logger.warning(
                "kvshelf leaves requests alone: %s. vLLM computes request %s and all later ones "
                "of this kind; nothing of them is loaded or stored (docs/sharing.md).",
                reason,
                req_id,
            )

    def is_left_alone(self, req_id: str) -> bool:
        return req_id in self._left_alone

    def begin_scan(self, req_id: str) -> None:
        """The lookups that follow are this request's."""
        is_refused = req_id in self._refused or req_id in self._left_alone
        self._shut = self._all_roots if is_refused else self._breakers.shut_to(req_id)

    @override
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if self._shut and (self._shut == self._all_roots or self._shelf.root_of(key) in self._shut):
            return _ABSENT
        answer = self._answers.get(key)
        if answer is _PENDING:
            self._lookups.fetch()
            answer = self._answers.get(key, _PENDING)
        if answer is _HIT:
            return _FOUND
        if answer is _MISS:
            return _ABSENT
        if answer is None:
            self._answers[key] = _PENDING
            self._wanted.append(key)
        return _LATER

    def prefetch(self, runs: Iterable[compat.KeyRun]) -> None:
        """Ask for a new request's keys before the scheduler does."""
        self._lookups.prefetch(self._breakers.askable(runs))

    def admit(
        self, req_id: str, tokens: int, chunks: int, keys: Callable[[], Sequence[bytes]]
    ) -> bool | None:
        """Whether a hit of so many tokens and chunks is loaded; None: ask again in a moment.

        ``keys`` gives the chunks' keys if they must be measured. After False, ``lookup`` says MISS
        to this request.
        """
        now = time.monotonic()
        verdict = self.admission.decide(tokens, chunks, now)
        if verdict is Verdict.MEASURE:
            self._measure(keys, now)
            wait_seconds = MEASURE_WAIT_SHARE * self.admission.compute_seconds(tokens)
            low, high = MEASURE_WAIT_SECONDS
            if now - self._measuring_since < min(max(low, wait_seconds), high):
                return None
            # Storage that takes so long to say how fast it is would not be worth it.
            verdict = Verdict.COMPUTE
        if verdict is not Verdict.COMPUTE:
            return True
        self._refused.add(req_id)
        self._stats.count(metrics.REFUSED_HIT_TOKENS, by=tokens)
        return False

    @override
    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> ChunkKeysSpec:
        self.admission.load_begins(len(keys))
        self.touch(keys, req_context)
        return ChunkKeysSpec(tuple(keys))

    @override
    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        if req_context.req_id in self._left_alone:
            return
        used = self._breakers.readable(tuple(keys))
        if used:
            self._touches.used(used, req_context)

    @override
    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput:
        """Offer what is not known to be stored. Never None: a full buffer drops in the worker."""
        if req_context.req_id in self._left_alone:
            return PrepareStoreOutput(
                keys_to_store=[], store_spec=ChunkKeysSpec(()), evicted_keys=[]
            )
        is_stored = self._presence.is_stored
        wanted = [] if self._is_split else [key for key in keys if not is_stored(key)]
        if len(wanted) < len(keys):
            self.touch([key for key in keys if is_stored(key)] if wanted else keys, req_context)
        unstored = len(wanted)
        wanted = self._breakers.writable(wanted, req_context.req_id)
        if len(wanted) < unstored:
            self._stats.count(metrics.STORE_OUTCOMES, "breaker", by=unstored - len(wanted))
        if wanted:
            self._touches.stores(wanted, req_context)
        for key in wanted:
            self._presence.storing(key)
            self._publishing.pop(key, None)
        return PrepareStoreOutput(
            keys_to_store=wanted, store_spec=ChunkKeysSpec(wanted), evicted_keys=[]
        )

    @override
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        self._left_alone.begins(req_context.req_id)
        now = time.monotonic()
        if now - self._last_step > PAUSE_SECONDS:
            self._tidy(now)
        # Every chunk is offered again, so that recomputed ones are stored anew; see compat.
        return RequestOffloadingContext(policy=compat.request_level_policy())

    @override
    def on_request_finished(self, req_context: ReqContext) -> None:
        self._refused.discard(req_context.req_id)
        self._left_alone.ends(req_context.req_id)
        self._touches.finished(req_context.req_id)

    @override
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        now = time.monotonic()
        self._tidy(now)
        self._lookups.end_step(now)
        self._breakers.tend(now, self._lookups.ping)

    def _tidy(self, now: float) -> None:
        """Forget what is over and what is gone, before it misleads a lookup."""
        self._last_step = now
        self._hear_of_evictions(now)
        self._presence.expire(now)

    def absorb(self, report: WorkerReport) -> None:
        """Take in what the workers report, before vLLM hears of the finished jobs."""
        now = time.monotonic()
        if not report.namespaces <= {self._shelf.folder}:
            self._is_split = True
            logger.error(
                "kvshelf is off: workers store in %s, where lookups do not look, in %s. "
                "`kvshelf namespaces ROOT --diff` of the two says why; please report it.",
                ", ".join(sorted(report.namespaces)),
                self._shelf.folder,
            )
        for key in report.failed:
            if self._presence.was_stored(key):
                self._events.gone(key)
            self._presence.failed(key, now)
            self._to_heal[key] = None
        drop_oldest(self._to_heal, TO_HEAL_KEYS_MAX)
        for key in report.unread:
            self._presence.unread(key, now, self._retry_seconds)
        for chunks, loaded, busy_seconds in report.loads:
            share = 1 / self._num_workers
            self.admission.load_ends(chunks * share, loaded * share, busy_seconds * share, now)
        self._breakers.told(report.outcomes, now)
        self._touches.not_stored(report.not_stored)
        for key in report.not_stored:
            self._presence.not_stored(key)
            self._publishing.pop(key, None)
        published: list[bytes] = []
        for key, news in report.published.items():
            ranks = news | self._publishing.pop(key, 0)
            if ranks != self._every_rank:
                self._publishing[key] = ranks
                continue
            self._presence.found(key, now)
            if key in self._to_heal:
                del self._to_heal[key]
                self._stats.count(metrics.HEALED_CHUNKS)
            self._events.stored(key)
            published.append(key)
        drop_oldest(self._publishing, PUBLISHING_KEYS_MAX)
        self._touches.stored(published)
        for key in published:  # a key that is there already becomes the last
            self._published.pop(key, None)
            self._published[key] = now
        self._stats.absorb(report)

    @override
    def take_events(self) -> Iterable[Any]:
        return self._events.take()

    @override
    def reset_cache(self) -> None:
        """Forget what is known, not what is stored: the shelf belongs to other engines too."""
        self._presence.forget()
        self._lookups.forget()
        self._publishing.clear()
        self._published.clear()
        self._evicted.clear()
        self._events.forget()
        self._touches.forget()
        self._to_heal.clear()

    @override
    def get_stats(self) -> Any:
        stats = self._stats.take()
        if stats is not None:  # with every report, so that "well" is a value too, not an absence
            for state, labels in self._breakers.states():
                stats.set_gauge(metrics.BREAKER_STATE, state, labels)
        return stats

    @override
    def shutdown(self) -> None:
        self._eviction.close(timeout_seconds=1.0)
        self._shelf.close(timeout_seconds=1.0)

    def _hear_of_evictions(self, now: float) -> None:
        """Forget what somebody evicted; a part of it a step, so that none takes long."""
        if not self._evicted:  # until then the duties keep a bounded number
            self._evicted.extend(self._eviction.take())
        for _ in range(min(len(self._evicted), EVICTED_KEYS_A_STEP)):
            root, key = self._evicted.popleft()
            if self._shelf.root_of(key) != root:
                continue
            if self._presence.is_storing(key):
                continue  # it was gone before, and soon is there again
            if key not in self._published:
                if key in self._answers or self._presence.was_stored(key):
                    self._presence.missed(key, now)
                self._events.gone(key)
            elif self._answers.get(key) is not _PENDING:
                # It went before we stored it, or after: ask.
                self._presence.pending((key,))
                self._wanted.append(key)
        published = self._published
        while published and next(iter(published.values())) < now - JOURNAL_SECONDS:
            published.popitem(last=False)

    def _measure(self, keys: Callable[[], Sequence[bytes]], now: float) -> None:
        """Begin to measure the storage by some of these chunks, unless that is under way."""
        if self._measuring_since > _NEVER:
            return

        chosen = spread(keys(), MEASURED_CHUNKS)

        def done(result: JobResult) -> None:
            self._measuring_since = _NEVER
            end, statuses = time.monotonic(), result.statuses
            if self._breakers.measured(chosen, statuses, end) and FileStatus.OK in statuses:
                self.admission.measured(result.payload_bytes, result.seconds, end)

        if self._lookups.probe(chosen, MEASURED_BYTES, done):
            self._measuring_since = now
