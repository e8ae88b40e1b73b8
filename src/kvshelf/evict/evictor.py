"""Keeps a shelf within its limits: looks, and when a limit is exceeded removes what goes first."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path

from kvshelf.clock import FileClock, boot_ns_now
from kvshelf.errors import NotAShelfError
from kvshelf.evict.cut import EffectiveAge, choose_cuts
from kvshelf.evict.limits import Amount, Limits, Need, Volume, may_exceed, needs
from kvshelf.evict.native import Names, Sweep, Work
from kvshelf.evict.policy import effective_age
from kvshelf.evict.refresh import SECONDS_MAX, RefreshTimes, Use
from kvshelf.evict.report import Report, State
from kvshelf.evict.spaces import Spaces
from kvshelf.keys import ChunkKey, make_key
from kvshelf.root import check_root

OnRemoved = Callable[[str, int, Sequence[ChunkKey]], None]
"""Called with a namespace's folder, a rank and the keys of its chunk files that were removed."""

# statvfs of a shared file system may tell of removed files so late (CephFS: 3 s).
SETTLE_SECONDS = 5.0
# A first scan that takes longer lets removal begin, from a sample of at least such a share.
_SAMPLE_AFTER_SECONDS, _SAMPLE_COVERAGE = 5.0, 1 / 16
# When nothing more can be removed, it is tried again after so long.
_STUCK_SECONDS = 10.0
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
        clock: the file system's, by which ages count; None: one of its own.

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
        clock: FileClock | None = None,
    ) -> None:
        self._root = Path(root)
        check_root(self._root)
        self._limits = limits
        self._dry_run = dry_run
        self._on_removed = on_removed
        self._policy = policy
        self._sweep = Sweep(self._root, threads=threads, files_per_second=files_per_second)
        self._clock = clock or FileClock(self._root)
        self._ahead_ns = 0  # of the time from which ages count, to CLOCK_BOOTTIME
        self._spaces = Spaces(self._root, self._clock)
        self._identity = self._root_identity()
        self._stop = threading.Event()
        self._volumes: deque[tuple[float, Volume, Amount, Amount]] = deque()
        self._began = time.monotonic()
        self._known = False  # all folders were scanned once
        self._scan_all = True  # all are to be scanned
        self._evicting = False
        self._evicting_since = 0.0
        self._fresh = False  # the histogram was made since the limit was exceeded
        self._future = False  # chunks used ahead of the file system's clock are candidates
        self._round: Need | None = None
        self._round_removed = Amount()
        self._cut_age: float | None = None
        self._refresh_times = RefreshTimes()
        self._stuck_until: dict[str | None, float] = {}  # by namespace, as needs are
        self._removed = Amount()  # in all
        self._dry: Counter[tuple[str | None, str]] = Counter()

    def step(self, seconds_max: float = 1.0) -> Report:
        """Look once; scan and remove for about so long if there is reason to.

        It may take longer by one folder's files, or if the storage hangs. The report says how soon
        to call it again.

        Raises:
            NotAShelfError: the root is no longer the shelf that it was.
            OSError: it cannot be looked at.
        """
        begin = time.monotonic()
        self._check()
        self._set_clock()
        log = _Log()
        state = State.IDLE
        left = seconds_max
        while left > 0 and not self._stop.is_set():
            state = self._advance(log, left)
            left = begin + seconds_max - time.monotonic()
            if state in (State.IDLE, State.STUCK):
                break
        if self._stop.is_set():
            state = State.STOPPED
        return self._report(state, log, time.monotonic() - begin)

    def _set_clock(self) -> None:
        """Ages count by the file system's clock; where it cannot be measured, by this machine's, or
        by the newest use if that is ahead of it."""
        reading, boot_ns = self._clock.read(), boot_ns_now()
        if reading is not None:
            ahead_ns = reading.ahead_ns
        else:
            newest_ns = int(self._sweep.buckets().last_use_ns.max(initial=0))
            ahead_ns = max(time.time_ns(), newest_ns) - boot_ns
        if abs(ahead_ns - self._ahead_ns) > _CLOCK_JUMP_NS:
            self._scan_all = True  # ages were counted from another time
        self._ahead_ns = ahead_ns
        self._sweep.set_clock(ahead_ns)

    def stop(self) -> None:
        """End a running step within 100 ms, unless the storage hangs, and all later ones."""
        self._stop.set()
        self._sweep.stop()

    def leave(self) -> None:
        """Another evicts from now on. When it is this one's turn again nothing is under way."""
        self._evicting = False
        self._round = None
        self._refresh_times.now()

    def close(self) -> None:
        """Do no more. Descriptors and threads go with the object. Not while a step runs."""
        self.stop()

    def _advance(self, log: _Log, left: float) -> State:
        """One piece of work: a part of a scan or of a removal."""
        now = time.monotonic()
        scanning = self._learn(log, left) if self._round is None else None
        if scanning is not None:
            return scanning
        wanted = self._wanted()
        if not wanted:
            self._evicting = self._fresh = self._future = False
            self._round = None
            self._stuck_until.clear()
            return State.IDLE if self._known else State.SCANNING
        stuck = {folder for folder, until in self._stuck_until.items() if now < until}
        if stuck:
            wanted = self._wanted(stuck)
        wanted = [need for need in wanted if need.amount]
        if not wanted:
            self._round = None  # what is known must be renewed meanwhile
            return State.STUCK
        if not self._evicting:
            self._evicting, self._evicting_since = True, now
            self._refresh_times.now()  # what others have removed meanwhile counts
        else:
            self._evict(wanted[0], log, left)
        return State.EVICTING

    def _learn(self, log: _Log, left: float) -> State | None:
        """Scan, if something is not known that must be before a limit is looked at."""
        now = time.monotonic()
        if self._scan_all:
            self._sweep.set_namespaces(self._spaces.list())
            work = log.add(self._sweep.scan(all_folders=True, seconds_max=left))
            if work.finished:
                self._scan_all, self._known, self._fresh = False, True, True
            elif self._known:
                return State.EVICTING
            elif not self._may_sample(now):
                return State.SCANNING
        elif self._refresh_is_due(now):
            done = self._refresh(log, left)
            if not done and self._evicting and now < self._evicting_since + SECONDS_MAX:
                return State.EVICTING
        return None

    def _may_sample(self, now: float) -> bool:
        waited = now - self._began > _SAMPLE_AFTER_SECONDS
        return waited and self._sweep.buckets().coverage >= _SAMPLE_COVERAGE

    def _refresh(self, log: _Log, left: float) -> bool:
        """Renew what is known of folders that have changed; True if that is done."""
        begin = time.monotonic()
        self._refresh_times.begin(self._use())
        self._sweep.set_namespaces(self._spaces.list())
        work = log.add(self._sweep.scan(all_folders=False, seconds_max=left))
        end = time.monotonic()
        self._refresh_times.end(end, end - begin, is_done=work.finished)
        return work.finished

    def _refresh_is_due(self, now: float) -> bool:
        use = self._use()
        return self._refresh_times.is_due(now, use, self._is_urgent(use))

    def _is_urgent(self, use: Use) -> bool:
        """Whether what came since the last look may exceed a limit; not if one is known to be."""
        usage = self._sweep.usage()
        shelf = sum(usage.values(), Amount())
        mean_bytes = shelf.bytes / max(1, shelf.files)
        grown = self._refresh_times.grown_bytes(use, mean_bytes)
        return may_exceed(self._limits, usage, grown) and not may_exceed(self._limits, usage, 0)

    def _use(self) -> Use:
        return Use.of(self._sees())

    def _evict(self, need: Need, log: _Log, left: float) -> None:
        if self._round is None or self._round.folder != need.folder:
            self._begin_round(need)
        work = log.add(self._sweep.remove(need.amount, left))
        self._round_removed += work.removed
        self._removed += work.removed
        log.removed += work.removed
        if self._dry_run:
            self._dry[need.folder, "files"] += work.removed.files
            self._dry[need.folder, "bytes"] += work.removed.bytes
        self._tell(work.names)
        if not work.finished:
            return
        planned, self._round = self._round, None
        assert planned is not None
        if not self._known:
            # Samples scatter. Down to the low mark once; then only if the limit seems exceeded.
            self._evicting = False
        self._refresh_times.now()  # others may have removed where this walk had been before
        if 2 * self._round_removed.bytes > planned.amount.bytes:
            return
        # The histogram promised more than there was: chunks were used since, or others removed.
        if not self._fresh or self._counts_what_is_gone():
            self._scan_all = True
        elif self._round_removed:
            return
        elif not self._future:
            self._future = True
        else:
            self._stuck_until[planned.folder] = time.monotonic() + _STUCK_SECONDS
            self._fresh = self._future = False

    def _counts_what_is_gone(self) -> bool:
        """Whether others have removed chunks that the histogram has; what we remove leaves it."""
        there = sum(amount.files for amount in self._sweep.usage().values())
        return there < int(self._sweep.buckets().files.sum())

    def _begin_round(self, need: Need) -> None:
        now_ns = boot_ns_now() + self._ahead_ns
        cuts = choose_cuts(
            self._sweep.buckets(),
            need.amount,
            self._policy,
            now_ns=now_ns,
            folder=need.folder,
            future_seconds=_FUTURE_SECONDS if self._future else 0.0,
        )
        latest = int(cuts[:, :, 1].max(initial=0))
        self._cut_age = 1e-9 * (now_ns - latest) if latest > 0 else None
        self._sweep.begin_removal(
            cuts, dry_run=self._dry_run, report_names=self._on_removed is not None
        )
        self._round = need
        self._round_removed = Amount()

    def _tell(self, batches: Sequence[Names]) -> None:
        if self._on_removed is None or self._dry_run:
            return
        for batch in batches:
            self._on_removed(batch.folder, batch.rank, [_key_of(name) for name in batch.names])

    def _wanted(self, stuck: Container[str | None] = ()) -> list[Need]:
        """What must go, by what is known now."""
        if self._round is not None and not self._known:
            # The sample ended when the removal began: what it said holds for this round.
            left = replace(self._round, amount=self._round.amount - self._round_removed)
            return [left] if left.amount else []
        wanted = needs(self._limits, self._volume(), self._usage(), self._evicting, stuck)
        if not self._dry_run:
            return wanted
        for i, need in enumerate(wanted):
            counted = Amount(self._dry[need.folder, "files"], self._dry[need.folder, "bytes"])
            wanted[i] = replace(need, amount=need.amount - counted)
        return [need for need in wanted if need.amount]

    def _usage(self) -> dict[str, Amount]:
        buckets = None if self._known else self._sweep.buckets()
        if buckets is None or not buckets.coverage:
            return self._sweep.usage()
        # What the sweep knows may be more than its sample: a removal walks through all folders.
        usage = {}
        for index, folder in enumerate(buckets.folders):
            rows = buckets.namespace == index
            files, bytes_ = buckets.files[rows].sum(), buckets.bytes[rows].sum()
            usage[folder] = Amount(int(files / buckets.coverage), int(bytes_ / buckets.coverage))
        return usage

    def _sees(self) -> Volume:
        return Volume.from_statvfs(tuple(os.statvfs(self._root)))

    def _volume(self) -> Volume:
        """The file system, less what is gone from the shelf and statvfs does not yet tell."""
        now = time.monotonic()
        volume = self._sees()
        shelf = sum(self._sweep.usage().values(), Amount())
        while self._volumes and self._volumes[0][0] < now - SETTLE_SECONDS:
            self._volumes.popleft()
        used, inodes = volume.used_bytes, volume.used_inodes
        for _, before, shelf_before, removed_before in self._volumes:
            # In a first scan what is known of the shelf grows: then what we have removed counts.
            gone = shelf_before - shelf if self._known else self._removed - removed_before
            if gone.files > 0:
                used = min(used, before.used_bytes - gone.bytes)
                inodes = min(inodes, before.used_inodes - gone.files)
        self._volumes.append((now, volume, shelf, self._removed))
        return replace(volume, used_bytes=max(0, used), used_inodes=max(0, inodes))

    def _root_identity(self) -> tuple[int, int]:
        found = self._root.stat()
        return found.st_dev, found.st_ino

    def _check(self) -> None:
        """A mount may go away or be replaced: what lies there then is not ours."""
        check_root(self._root)
        if self._root_identity() != self._identity:
            raise NotAShelfError(f"{self._root} is another directory than it was")

    def _report(self, state: State, log: _Log, seconds: float) -> Report:
        count, examples = self._sweep.foreign()
        mine = self._spaces.foreign
        return Report(
            state=state,
            volume=self._sees(),
            usage=self._usage(),
            needs=tuple(self._wanted()) if self._known else (),
            removed=log.removed,
            cut_age_seconds=self._cut_age if log.removed else None,
            looked_at=log.looked_at,
            spared=log.spared,
            is_urgent=self._known and self._is_urgent(self._use()),
            foreign=count + len(mine),
            foreign_examples=(*mine[:8], *examples),
            unread=self._spaces.unread,
            faults=dict(log.faults),
            clock_problem=str(self._clock.problem or ""),
            seconds=seconds,
        )


class _Log:
    """What the parts of one step did."""

    def __init__(self) -> None:
        self.removed = Amount()
        self.looked_at = 0
        self.spared = 0
        self.faults: Counter[int] = Counter()

    def add(self, work: Work) -> Work:
        self.looked_at += work.files
        self.spared += work.spared
        self.faults.update(work.faults)
        return work


def _key_of(name: str) -> ChunkKey:
    digits, _, group = name.removesuffix(".kv").partition("-g")
    return make_key(bytes.fromhex(digits), int(group))
