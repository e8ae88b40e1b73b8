"""The scheduler's side: which chunks the shelf has, which a request loads and which it stores.

Everything here runs on the scheduler's thread and must never wait: answers come from
``ChunkTable``; questions that it cannot answer are collected during a step, sent to the native
lookup threads at its end, and answered RETRY meanwhile. No file-system call is made here.

    lookup -> ChunkTable -> HIT, MISS
                         -> unknown: Lookups -> Shelf -> poll -> ChunkTable
    a hit  -> Admission -> load it, compute it, or measure the storage first
    faults -> Breakers -> a root that does not answer is left alone
    used, stored -> Touches; stored, evicted -> Events; evicted by a replica -> EvictionNews
                 -> ChunkTable
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
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
from kvshelf.disk.keys import masked, masked_all
from kvshelf.faultlog import FaultLog
from kvshelf.shelf import Shelf
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.vllm import compat
from kvshelf.vllm.adapters import Adapter
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.scheduler.admission import Admission
from kvshelf.vllm.scheduler.audit import Audits
from kvshelf.vllm.scheduler.breakers import Breakers
from kvshelf.vllm.scheduler.chunk_record import Answer, Record
from kvshelf.vllm.scheduler.chunk_table import ChunkTable
from kvshelf.vllm.scheduler.earlier_stores import EarlierStores
from kvshelf.vllm.scheduler.epochs import Epochs
from kvshelf.vllm.scheduler.events import Events
from kvshelf.vllm.scheduler.eviction import EvictionNews
from kvshelf.vllm.scheduler.lookups import Lookups
from kvshelf.vllm.scheduler.masked import MaskedShelf, RequestKeys
from kvshelf.vllm.scheduler.measuring import Measuring
from kvshelf.vllm.scheduler.requests import LeftAlone
from kvshelf.vllm.scheduler.touches import Touches
from kvshelf.vllm.specs import ChunkKeysSpec, nothing_to_store
from kvshelf.vllm.stats import StatsSink

logger = compat.logger_of(__name__)

# Names for the hot path of lookups, which runs once a key: an attribute of an enum is slow.
_HIT, _MISS = Answer.HIT, Answer.MISS
_FOUND, _ABSENT, _LATER = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY

# An engine without requests makes no steps. After so long without one, what is known may be old.
PAUSE_SECONDS = 0.1
_NEVER = float("-inf")
# In the table's place for a scan whose keys need more than a look.
_NO_RECORDS: Mapping[bytes, Record] = MappingProxyType({})


class KvshelfManager(OffloadingManager):
    """Source: vLLM's OffloadingManager (vllm/v1/kv_offload/base.py). One thread: the scheduler's.

    Args:
        shelf: without block memory; used for lookups and touches only. Closed by ``shutdown``.
        table: what is known of chunks.
        settings: the user's.
        chunk_bytes: bytes of a chunk's files, all ranks'; groups' mean.
        chunk_tokens: tokens of a chunk.
        emit_events: whether vLLM publishes KV events.
        duties: eviction in the background, one a root; none: this engine does not hear of any.
    """

    def __init__(
        self,
        shelf: Shelf,
        table: ChunkTable,
        settings: Settings,
        *,
        chunk_bytes: int,
        chunk_tokens: int,
        emit_events: bool,
        duties: Sequence[EvictionDuty] = (),
    ) -> None:
        self._shelf = masked_shelf = MaskedShelf(shelf)
        self._table = table
        # The hot path's own references.
        self._records, self._asked, self._wanted = table.records, table.asked, table.wanted
        self._record_of: Callable[[bytes], Record | None] = table.records.get
        self._retry_seconds = settings.breaker_retry_seconds
        self._earlier_stores = EarlierStores()
        self._stats = StatsSink()
        self._faults = FaultLog(logger)
        self._breakers = Breakers(masked_shelf, settings, self._stats, logger)
        self._events = Events(are_wanted=emit_events)
        self._touches = Touches(
            masked_shelf,
            table,
            self._faults,
            chunk_tokens=chunk_tokens,
            interval_seconds=settings.touch_interval_seconds,
        )
        self._lookups = Lookups(
            masked_shelf,
            table,
            self._stats,
            self._breakers,
            self._faults,
            evicted=self._events.evicted,
            wait_seconds=settings.lookup_wait_seconds,
        )
        self.admission = Admission(
            min_hit_tokens=settings.min_hit_tokens,
            compare=settings.admission == "auto",
            chunk_bytes=chunk_bytes,
        )
        self._last_step = _NEVER
        self._measuring = Measuring(self.admission, self._lookups, self._breakers)
        self._is_split = False  # workers use another namespace: of no use to store
        self._refused: set[str] = set()  # requests that compute what they could load
        self._left_alone = LeftAlone(self._stats, logger)
        self._epochs = Epochs()
        self._keys = RequestKeys(masked_shelf)
        self._scanned = b""  # mask of the adapter of the request that looks up
        self._all_roots = frozenset(range(len(shelf.roots)))
        self._shut: frozenset[int] = frozenset()  # roots closed to the request that looks up
        self._is_plain = True  # none is, and the request has no adapter
        self._eviction = EvictionNews(duties, masked_shelf, self._stats, logger)
        self.audits = Audits(settings, self._stats, logger)

    def take_role(self, *, loads: bool, stores: bool) -> None:
        """Load only, store only, or both (vLLM's ``kv_role``)."""
        self._left_alone.loads, self._left_alone.stores = loads, stores

    def leave_alone(self, req_id: str, reason: str) -> None:
        """Load and store nothing of this request from now on. Call it after ``on_new_request``."""
        self._left_alone.add(req_id, reason)

    def follow(self, epochs: Epochs) -> None:
        """Load and store what belongs to the weights of this epoch, as long as they are known."""
        self._epochs = epochs
        epochs.listen(self._turn)
        self._turn()

    def use_adapter(self, req_id: str, adapter: Adapter) -> None:
        """This request's KV depends on an adapter. Call it after ``on_new_request``."""
        self._keys.use_adapter(req_id, adapter)

    def begin_scan(self, req_id: str, computed_tokens: int = 0) -> None:
        """The lookups that follow are this request's, behind what vLLM has computed of it."""
        is_refused = self.audits.refuses(req_id, computed_tokens) or not self._epochs.is_on
        is_refused |= req_id in self._refused or not self._left_alone.may_load(req_id)
        self._shut = self._all_roots if is_refused else self._breakers.shut_to(req_id)
        self._scanned = self._keys.mask_of(req_id)
        self._is_plain = not self._shut and not self._scanned
        self._record_of = (self._records if self._is_plain else _NO_RECORDS).get

    @override
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        record = self._record_of(key)
        if record is None:
            if not self._is_plain:
                key = masked(key, self._scanned)
                if self._shut == self._all_roots or self._shelf.root_of(key) in self._shut:
                    return _ABSENT
                record = self._records.get(key)
            if record is None:  # as ``ChunkTable.ask`` does
                self._records[key] = self._asked
                self._wanted.append(key)
                return _LATER
        answer = record.answer
        if answer is _HIT:
            return _FOUND
        if answer is _MISS:
            return _ABSENT
        if answer is None:
            self._wanted += self._table.ask((key,))
            return _LATER
        self._lookups.fetch()
        answer = self._table.answer(key)
        return _FOUND if answer is _HIT else _ABSENT if answer is _MISS else _LATER

    def prefetch(self, runs: Iterable[compat.KeyRun], req_id: str = "") -> None:
        """Ask for a new request's keys before the scheduler does."""
        if self.audits.is_off or not self._epochs.is_on or not self._left_alone.loads:
            return
        if mask := self._keys.mask_of(req_id):
            runs = [replace(run, keys=list(masked_all(run.keys, mask))) for run in runs]
        self._lookups.prefetch(self._breakers.askable(runs))

    def admit(
        self, req_id: str, tokens: int, chunks: int, keys: Callable[[], Sequence[bytes]]
    ) -> bool | None:
        """Whether a hit of so many tokens and chunks is loaded; None: ask again in a moment.

        ``keys`` gives the chunks' keys if they must be measured. After False, ``lookup`` says MISS
        to this request.
        """
        admitted = self._measuring.admits(
            tokens, chunks, lambda: self._keys.ours(list(keys()), req_id)
        )
        if admitted is False:
            self._refused.add(req_id)
            self._stats.count(metrics.REFUSED_HIT_TOKENS, by=tokens)
        return admitted

    @override
    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> ChunkKeysSpec:
        self.admission.load_begins(len(keys))
        self.touch(keys, req_context)
        req_id = req_context.req_id
        return self._keys.spec(self._keys.ours(list(keys), req_id), req_id)

    @override
    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        if req_context.req_id in self._left_alone:
            return
        used = self._breakers.readable(self._keys.ours(tuple(keys), req_context.req_id))
        if used:
            self._touches.used(used, self._keys.context_of(req_context))

    @override
    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput:
        """Offer what is not known to be stored. Never None: a full buffer drops in the worker."""
        req_id = req_context.req_id
        if self.audits.is_off or not self._left_alone.may_store(req_id):
            return nothing_to_store()
        if not self._epochs.may_store(req_id):
            self._stats.count(metrics.STORE_OUTCOMES, "weights", by=len(keys))
            return nothing_to_store()
        mask, is_stored = self._keys.mask_of(req_id), self._table.is_stored
        ours = masked_all(list(keys), mask)
        wanted = [] if self._is_split else [key for key in ours if not is_stored(key)]
        if len(wanted) < len(ours):
            used = [key for key in ours if is_stored(key)] if wanted else ours
            self.touch(masked_all(used, mask), req_context)
        unstored = len(wanted)
        wanted = self._breakers.writable(wanted, req_id)
        if len(wanted) < unstored:
            self._stats.count(metrics.STORE_OUTCOMES, "breaker", by=unstored - len(wanted))
        if wanted:
            times_ns = self._touches.stores(wanted, self._keys.context_of(req_context))
            for key, touch_ns in zip(wanted, times_ns, strict=True):
                self._table.storing(key, touch_ns)
        named = list(masked_all(wanted, mask))
        self._events.alias(wanted, named)
        named, audited = self.audits.offered(req_id, keys, named)
        spec = self._keys.spec(masked_all(named, mask), req_id, audited)
        return PrepareStoreOutput(keys_to_store=named, store_spec=spec, evicted_keys=[])

    def stored(self, keys: Collection[OffloadKey], req_context: ReqContext) -> set[OffloadKey]:
        """Of these keys of a request, those that need not be stored again."""
        pairs = zip(keys, self._keys.ours(list(keys), req_context.req_id), strict=True)
        return {key for key, own in pairs if self._table.is_stored(own)}

    @override
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        self._left_alone.begins(req_context.req_id)
        self._keys.begins(req_context.req_id)
        now = time.monotonic()
        if now - self._last_step > PAUSE_SECONDS:
            self._tidy(now)
        # Every chunk is offered again, so that recomputed ones are stored anew; see compat.
        return RequestOffloadingContext(policy=compat.REQUEST_LEVEL)

    @override
    def on_request_finished(self, req_context: ReqContext) -> None:
        self._refused.discard(req_context.req_id)
        self._left_alone.ends(req_context.req_id)
        self.audits.finished(req_context.req_id)
        self._touches.finished(req_context.req_id)

    @override
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        now = time.monotonic()
        self._tidy(now)
        self._lookups.end_step(now)
        self._breakers.tend(now, self._lookups.ping)

    def _tidy(self, now: float) -> None:
        """Forget what is over and what was evicted, before it misleads a lookup."""
        self._last_step = now
        for key in self._eviction.take():
            if self._table.evicted(key, now, tells=self._events.are_wanted):
                self._events.evicted(key)
        self._table.expire(now)

    def absorb(self, report: WorkerReport) -> None:
        """Take in what the workers report, before vLLM hears of the finished jobs."""
        now = time.monotonic()
        report = self._earlier_stores.without(report)
        report = report.renamed(self._shelf.names) if self._shelf.mask else report
        if not report.namespaces <= {self._shelf.folder}:
            self._is_split = True
            logger.error(
                "kvshelf is off: workers store in %s, where lookups do not look, in %s. "
                "`kvshelf diff ROOT` of the two says why; please report it.",
                ", ".join(sorted(report.namespaces)),
                self._shelf.folder,
            )
        for key in report.failed:
            if self._table.failed(key, now):
                self._events.evicted(key)
        for key in report.unread:
            self._table.unread(key, now, self._retry_seconds)
        for chunks, loaded, busy_seconds in report.loads:
            share = 1 / self._table.num_workers
            self.admission.load_ends(chunks * share, loaded * share, busy_seconds * share, now)
        self._breakers.told(report.outcomes, now)
        self._eviction.hear_no_room(report.no_room)
        for key in report.not_stored:
            self._table.dropped(key)
        published = self._table.published(report.published, now)
        for key in published.keys:
            self._events.stored(key)
        if published.healed:
            self._stats.count(metrics.HEALED_CHUNKS, by=published.healed)
        if published.touches:
            self._touches.touch(list(published.touches), list(published.touches.values()))
        self._stats.absorb(report)
        self.audits.told(report, self._shelf.folder)

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> Any:
        """Where a hit comes from (vLLM since 0.32)."""
        del key, req_context
        return compat.load_source()

    @override
    def take_events(self) -> Iterable[Any]:
        return self._events.take()

    @override
    def reset_cache(self) -> None:
        """Forget what is known; the shelf is others' too. What follows is ``Epochs``' matter."""
        self._forget()

    def _turn(self) -> None:
        """Other weights: other chunks."""
        self._earlier_stores.add(self._shelf.names(self._table.storing_keys()))
        if self._shelf.mask != self._epochs.mask:
            self._stats.count(metrics.WEIGHT_EPOCHS)
        self._shelf.mask = self._epochs.mask
        self._forget()

    def _forget(self) -> None:
        self._table.forget()
        self._eviction.forget()
        self._events.forget()

    @override
    def get_stats(self) -> Any:
        stats = self._stats.take()
        if stats is not None:  # with every report, so that "well" is a value too, not an absence
            stats.set_gauge(metrics.WEIGHTS_KNOWN, int(self._epochs.is_on), ())
            for state, labels in self._breakers.states():
                stats.set_gauge(metrics.BREAKER_STATE, state, labels)
        return stats

    @override
    def shutdown(self) -> None:
        self._eviction.close(timeout_seconds=1.0)
        self._shelf.inner.close(timeout_seconds=1.0)
