"""Keeps a shelf within its limits: looks, and when a limit is exceeded removes what goes first."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from kvshelf.disk.clock import FileClock
from kvshelf.disk.keys import ChunkKey
from kvshelf.upkeep.evict.cut import EffectiveAge, choose_cuts
from kvshelf.upkeep.evict.demand import REASON as DEMAND
from kvshelf.upkeep.evict.effect import SETTLE_SECONDS_MAX
from kvshelf.upkeep.evict.leftovers import Leftovers
from kvshelf.upkeep.evict.limits import Amount, Limits, Need, may_exceed
from kvshelf.upkeep.evict.native import Names, Sweep
from kvshelf.upkeep.evict.phase import Event, Phase
from kvshelf.upkeep.evict.policy import effective_age
from kvshelf.upkeep.evict.refresh import SECONDS_MAX, RefreshTimes, Sampling, Use
from kvshelf.upkeep.evict.report import Report, State, StepLog
from kvshelf.upkeep.evict.round import Round
from kvshelf.upkeep.evict.spaces import Spaces
from kvshelf.upkeep.evict.wanted import Wanted
from kvshelf.upkeep.evict.watch import RootWatch

OnRemoved = Callable[[str, int, Sequence[ChunkKey]], None]
"""Called with a namespace's folder, a rank and the keys of its chunk files that were removed."""

# When nothing more can be removed, it is tried again after so long.
_STUCK_SECONDS = 10.0
# What temp files take is room for these alone: the other limits are of chunks.
_OF_VOLUME = frozenset({"volume_percent", "inode_percent", DEMAND})
# What the file system refused to remove is tried again after so long: a flag or a lock may go.
HELD_SECONDS = 60.0
# Last uses ahead of the file system's clock by so much (100 years) are candidates, after all
# others: a file server's clock that was set back leaves some.
_FUTURE_SECONDS = 3.2e9
# Such a change of the clock makes the histogram of ages anew.
_CLOCK_JUMP_NS = 10**9


class Evictor:
    """Keeps one shelf within its limits, a step at a time.

    Several may work on a shelf at once, on any number of hosts: none removes more than it would
    alone, because all choose the same chunks. One does it with the least work.

    Args:
        root: the shelf's directory.
        limits: what it may take.
        files_per_second: files that are looked at or removed, at most; 0: no limit.
        threads: that do so.
        dry_run: count what would go, remove nothing.
        on_removed: told of all that was removed, in the thread of ``step``, soon after.
        policy: which chunks go first, as ``policy.effective_age``.
        settle_seconds: statvfs may show so late what was removed.
        clock: the file system's, by which ages count; None: one of its own.

    Attributes:
        phase: what it knows, and how far it goes.

    Raises:
        NotAShelfError: the root carries no marker that we know.
        OSError: it cannot be opened.

    Threads: one thread steps and closes; ``stop`` may be called from any.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        limits: Limits,
        *,
        files_per_second: float = 50_000.0,
        threads: int = 4,
        dry_run: bool = False,
        on_removed: OnRemoved | None = None,
        policy: EffectiveAge = effective_age,
        settle_seconds: float = SETTLE_SECONDS_MAX,
        clock: FileClock | None = None,
    ) -> None:
        self._root = Path(root)
        self._watch = RootWatch(self._root, clock, keeps_marker=not dry_run)
        self._limits = limits
        self._dry_run = dry_run
        self._on_removed = on_removed
        self._policy = policy
        self._sweep = Sweep(self._root, threads=threads, files_per_second=files_per_second)
        self._spaces = Spaces(self._root, self._watch.clock)
        self._stop = threading.Event()
        self._needs = Wanted(
            self._watch, self._sweep, settle_seconds=settle_seconds, dry_run=dry_run
        )
        self._leftovers = Leftovers(self._root, dry_run=dry_run)
        self._sampling = Sampling()
        self.phase = Phase.LEARNING
        self._scan_all = True  # all folders are to be scanned, whatever the phase
        self._evicting_since = 0.0
        self._round: Round | None = None
        self._release_at = 0.0  # what is held is tried again from then on
        self._refresh_times = RefreshTimes()
        self._stuck_until: dict[str | None, float] = {}  # by namespace, as needs are

    def step(self, seconds_max: float = 1.0) -> Report:
        """Look once; scan and remove for about so long if there is reason to.

        It may take longer by one folder's files, or if the storage hangs. The report says how soon
        to call it again.

        Raises:
            NotAShelfError: the root is no longer the shelf that it was.
            OSError: it cannot be looked at.
        """
        begin = time.monotonic()
        self._watch.check()
        self._look_at_clock()
        log = StepLog()
        state = State.IDLE
        left = seconds_max
        while left > 0 and not self._stop.is_set():
            state = self._advance(log, left)
            left = begin + seconds_max - time.monotonic()
            if state not in (State.SCANNING, State.EVICTING) or log.is_settling:
                break
        if self._stop.is_set():
            state = State.STOPPED
        return self._report(state, log, time.monotonic() - begin)

    def _look_at_clock(self) -> None:
        before_ns = self._watch.ahead_ns
        self._watch.look_at_clock(self._sweep.newest_use_ns)
        if abs(self._watch.ahead_ns - before_ns) > _CLOCK_JUMP_NS:
            self._scan_all = True  # ages were counted from another time
        self._sweep.set_clock(self._watch.ahead_ns)

    def stop(self) -> None:
        """End a running step within 100 ms, unless the storage hangs, and all later ones."""
        self._stop.set()
        self._sweep.stop()

    def wants_room(self) -> None:
        """Stores fail for lack of room though no limit may be exceeded: some chunks go."""
        self._needs.asked(self._usage())

    def leave(self) -> None:
        """Another evicts from now on. When it is this one's turn again nothing is under way."""
        self._needs.forget()
        self.phase = self.phase.after(Event.LEFT)
        self._round = None
        self._refresh_times.now()

    def close(self) -> None:
        """Do no more. Descriptors and threads go with the object. Not while a step runs."""
        self.stop()

    def _advance(self, log: StepLog, left: float) -> State:
        """One piece of work: a part of a scan or of a removal."""
        now = time.monotonic()
        log.is_settling = False
        scanning = self._learn(log, left) if self._round is None else None
        if scanning is not None:
            return scanning
        wanted = self._wanted()
        if not wanted:
            self._release_held(now)
            self.phase = self.phase.after(Event.WITHIN)
            self._round = None
            self._stuck_until.clear()
            return self._rest(log)
        stuck = {folder for folder, until in self._stuck_until.items() if now < until}
        if stuck:
            wanted = self._wanted(stuck)
        wanted = [need for need in wanted if need.amount]
        if not wanted:
            self._round = None  # what is known must be renewed meanwhile
            self._needs.give_up()
            return State.STUCK
        if not self.phase.is_evicting:
            self.phase, self._evicting_since = self.phase.after(Event.EXCEEDED), now
            self._refresh_times.now()  # what others have removed meanwhile counts
        elif wanted[0].reason in _OF_VOLUME and self._leftovers.is_due:
            self._clean(log, left)
        else:
            self._evict(wanted[0], log, left)
        return State.EVICTING

    def _rest(self, log: StepLog) -> State:
        """No limit is exceeded, if the volume will show what went and nobody has written since."""
        if not self.phase.is_known:
            return State.SCANNING
        if not self._needs.is_settled(self._limits, self._usage()):
            log.is_settling = True
            return State.EVICTING
        is_blind = self._sweep.unseen() or self._spaces.unread
        return State.BLIND if is_blind else State.IDLE

    def _clean(self, log: StepLog, left: float) -> None:
        """What dead writers left goes before good chunks do."""
        before = self._watch.volume()
        removed = self._leftovers.step(self._spaces.list(), left, self._stop.is_set)
        log.leftovers += removed
        log.faults.update(+self._leftovers.faults)
        self._leftovers.faults.clear()
        self._needs.removed(removed, before)

    def _learn(self, log: StepLog, left: float) -> State | None:
        """Scan, if something is not known that must be before a limit is looked at."""
        now = time.monotonic()
        if self._scan_all:
            self._sweep.set_namespaces(self._spaces.list())
            work = log.add(self._sweep.scan(all_folders=True, seconds_max=left))
            if work.finished:
                self._scan_all, self.phase = False, self.phase.after(Event.SCAN_ENDED)
            elif self.phase.is_known:
                return State.EVICTING
            elif not self._sampling.is_due(now, self._sweep.coverage):
                return State.SCANNING
        elif self._refresh_is_due(now):
            done = self._refresh(log, left)
            if not done and self.phase.is_evicting and now < self._evicting_since + SECONDS_MAX:
                return State.EVICTING
        return None

    def _refresh(self, log: StepLog, left: float) -> bool:
        """Renew what is known of folders that have changed; True if that is done."""
        begin = time.monotonic()
        self._refresh_times.begin(self._watch.use())
        self._sweep.set_namespaces(self._spaces.list())
        work = log.add(self._sweep.scan(all_folders=False, seconds_max=left))
        end = time.monotonic()
        self._refresh_times.end(end, end - begin, is_done=work.finished)
        return work.finished

    def _refresh_is_due(self, now: float) -> bool:
        use = self._watch.use()
        return self._refresh_times.is_due(now, use, self._is_urgent(use))

    def _is_urgent(self, use: Use) -> bool:
        """Whether what came since the last look may exceed a limit; not if one is known to be."""
        usage = self._sweep.usage()
        shelf = self._sweep.total()
        mean_bytes = shelf.bytes / max(1, shelf.files)
        grown = self._refresh_times.grown_bytes(use, mean_bytes)
        return may_exceed(self._limits, usage, grown) and not may_exceed(self._limits, usage, 0)

    def _evict(self, need: Need, log: StepLog, left: float) -> None:
        need = self._needs.allowed(need, self._usage())
        if not need.amount:
            log.is_settling = True
            self._round = None
            return
        if self._round is None or self._round.need.folder != need.folder:
            self._round = self._begin_round(need)
        round_ = self._round
        before = self._watch.volume()
        work = log.add(self._sweep.remove(need.amount, left))
        self._needs.removed_chunks(need, work.removed, before)
        round_.add(work)
        log.cut_age_seconds = round_.cut_age_seconds
        if work.refused:
            self._release_at = time.monotonic() + HELD_SECONDS
        log.removed += work.removed
        self._tell(work.names)
        if work.finished:
            self._round = None
            self._end_round(round_)

    def _end_round(self, ended: Round) -> None:
        if not self.phase.is_known:
            self.phase = self.phase.after(Event.SAMPLE_USED)
            self._sampling.used(time.monotonic(), has_helped=bool(ended.removed))
        self._refresh_times.now()  # others may have removed where this walk had been before
        if ended.is_kept(self._sweep.held().amount):
            return
        if not self.phase.is_fresh or self._sweep.counts_what_is_gone():
            self._scan_all = True
        elif not ended.removed and not ended.refused:
            if self.phase is Phase.AHEAD:
                self._stuck_until[ended.need.folder] = time.monotonic() + _STUCK_SECONDS
            self.phase = self.phase.after(Event.FRUITLESS)

    def _release_held(self, now: float) -> None:
        if now >= self._release_at and not self._scan_all:
            self._sweep.release_held()

    def _begin_round(self, need: Need) -> Round:
        self._release_held(time.monotonic())
        now_ns = self._watch.now_ns()
        cuts = choose_cuts(
            self._sweep.buckets(),
            need.amount,
            self._policy,
            now_ns=now_ns,
            folder=need.folder,
            future_seconds=_FUTURE_SECONDS if self.phase is Phase.AHEAD else 0.0,
        )
        self._sweep.begin_removal(
            cuts, dry_run=self._dry_run, report_names=self._on_removed is not None
        )
        latest = int(cuts[:, :, 1].max(initial=0))
        cut_age = 1e-9 * (now_ns - latest) if latest > 0 else None
        return Round(need, cut_age, self._sweep.held().amount)

    def _tell(self, batches: Sequence[Names]) -> None:
        if self._on_removed is None or self._dry_run:
            return
        for batch in batches:
            self._on_removed(batch.folder, batch.rank, batch.keys())

    def _wanted(self, stuck: Container[str | None] = ()) -> list[Need]:
        if self._round is not None and not self.phase.is_known:
            # The sample ended when the removal began: what it said holds for this round.
            return self._round.left()
        return self._needs.needs(self._limits, self._usage(), self.phase, stuck)

    def _usage(self) -> dict[str, Amount]:
        return self._sweep.usage() if self.phase.is_known else self._sweep.sampled_usage()

    def _report(self, state: State, log: StepLog, seconds: float) -> Report:
        (count, examples), mine = self._sweep.foreign(), self._spaces.foreign
        wanted = tuple(self._wanted()) if self.phase.is_known else ()
        return Report(
            state=state,
            volume=self._watch.volume(),
            usage=self._usage(),
            needs=wanted,
            is_settling=log.is_settling,
            unfreed=self._needs.unfreed(wanted),
            leftovers=log.leftovers,
            room_requests=self._needs.requests,
            removed=log.removed,
            cut_age_seconds=log.cut_age_seconds if log.removed else None,
            looked_at=log.looked_at,
            spared=log.spared,
            is_urgent=self.phase.is_known and self._is_urgent(self._watch.use()),
            foreign=count + len(mine),
            foreign_examples=(*mine[:8], *examples),
            unread=self._spaces.unread,
            held=self._sweep.held(),
            unseen=self._sweep.unseen(),
            faults=dict(log.faults),
            clock_problem=str(self._watch.clock.problem or ""),
            seconds=seconds,
        )
