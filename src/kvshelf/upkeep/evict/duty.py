"""Eviction as a background duty of an engine: whichever replica holds the lease does it.

    thread:  Turn -> Evictor.step -> journal         (the holder)
             journal -> keys that are gone           (every replica)
    owner:   take() -> News

The thread makes all the file-system calls and may hang in one; its owner never waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kvshelf.disk.clock import FileClock, Reading
from kvshelf.disk.threads import start
from kvshelf.disk.volume import Volume, volume_of
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict.effect import unkept
from kvshelf.upkeep.evict.evictor import Evictor, OnRemoved
from kvshelf.upkeep.evict.journal import RemovedReader
from kvshelf.upkeep.evict.lease import Lease
from kvshelf.upkeep.evict.limits import Amount, Limits
from kvshelf.upkeep.evict.mends import with_mend
from kvshelf.upkeep.evict.report import Report, State, no_effect_text
from kvshelf.upkeep.evict.series import with_own_series
from kvshelf.upkeep.evict.turn import Turn

# Limits are looked at so often, and the journal too.
WAKE_SECONDS = 1.0
# Between two steps the lease is looked at. The holder trusts it for two thirds of its time.
STEP_SECONDS = 0.5
# Keys that wait for the owner; more are forgotten, and found out by lookups.
KEYS_MAX = 65_536
# Faults that wait for the owner.
FAULTS_MAX = 100
# So long chunks may lie in a folder that eviction does not know: two calls each time.
RENEW_SECONDS = 10.0
_NICE = 10


@dataclass(frozen=True, slots=True)
class Fault:
    """What failed: "clock", "lease", "evict" or "journal"; the errno's name or "other"; times."""

    part: str
    errno: str
    text: str
    times: int = 1


@dataclass(slots=True)
class News:
    """What happened since the owner last asked.

    Attributes:
        is_holder: whether this replica holds the lease.
        removed_files, removed_bytes: that this replica evicted.
        gone: keys of this replica's namespace that somebody evicted.
        dropped: keys that were not kept for the owner.
        shelf: all chunks by namespace, as the holder knows them; empty for others. Of 100
            namespaces and ``series.OTHER``.
        volume: the root's file system, as the holder saw it; None from others.
        state: what the holder does; None from others. What was seen last stays while the holder
            stands back.
        held_chunks: chunk files that this replica could not remove when it last tried.
        leftovers: files of dead writers that this replica removed.
        room_requests: how often this replica asked for room, because its stores failed.
        no_effect: limits for which chunks went and made no room, since the last call.
        notes: log lines: a cause and a text.
        clock: of the root's file system, if it was measured.
        pass_seconds: from crossing a limit to being within it again, of the last pass; None: none
            ended.
    """

    is_holder: bool = False
    removed_files: int = 0
    removed_bytes: int = 0
    gone: dict[bytes, None] = field(default_factory=dict)
    dropped: int = 0
    shelf: Mapping[str, Amount] = field(default_factory=dict)
    volume: Volume | None = None
    state: State | None = None
    leftovers: Amount = field(default_factory=Amount)
    room_requests: int = 0
    no_effect: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    held_chunks: int = 0
    clock: Reading | None = None
    pass_seconds: float | None = None
    faults: list[Fault] = field(default_factory=list)


class Steps(Protocol):
    """The part of ``Evictor`` that is used here."""

    def step(self, seconds_max: float = 1.0) -> Report: ...
    def wants_room(self) -> None: ...
    def stop(self) -> None: ...
    def leave(self) -> None: ...


class EvictionDuty:
    """One thread that evicts while this process holds the lease, and reads what others evict.

    Args:
        root: the shelf.
        folder: the namespace whose removed keys are wanted.
        limits: what the shelf may take; without any, only the journal is read.
        lease_seconds: see ``Lease``.
        evictor: makes it; called when the lease is first held.
        renew: makes the namespace again if it is gone; called now and then.

    Threads: ``take``, ``has_news`` and ``close`` are for one owner, and never wait for storage.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        folder: str,
        *,
        limits: Limits,
        lease_seconds: float,
        dir_mode: int = 0o2770,
        file_mode: int = 0o640,
        evictor: Callable[..., Steps] = Evictor,
        lease: Lease | None = None,
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = Path(root)
        self._renew = renew
        self._renewed_at = time.monotonic()
        self._limits = limits
        self._turn = Turn(
            root,
            lease_seconds=lease_seconds,
            on_fault=self._fault,
            dir_mode=dir_mode,
            file_mode=file_mode,
            lease=lease,
        )
        self._clock = FileClock(root, file_mode=file_mode)
        self._step_seconds = min(STEP_SECONDS, lease_seconds / 10)
        self._make_evictor = evictor
        self._evictor: Steps | None = None
        self._reader = RemovedReader(root, folder)
        self._wants_room = False  # set by the owner, taken by the thread
        self._unfreed: frozenset[str] = frozenset()
        self._wait_seconds = WAKE_SECONDS  # before the thread looks again
        self._pass_since: float | None = None
        self._lock = threading.Lock()  # never held across a system call
        self._news = News()
        self.has_news = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvshelf-evict", daemon=True)

    def start(self) -> None:
        """
        Raises:
            ResourceError: no thread is to be had.
        """
        start(self._thread)

    def take(self) -> News:
        """What happened since the last call."""
        with self._lock:
            news, self.has_news = self._news, False
            self._news = News(
                news.is_holder,
                shelf=news.shelf,
                held_chunks=news.held_chunks,
                volume=news.volume,
                state=news.state,
            )
        return news

    def want_room(self) -> None:
        """A store of this replica failed for lack of room: whoever evicts is to make some."""
        self._wants_room = True

    def stop(self) -> None:
        """Tell the thread to end; ``close`` waits for it."""
        self._stop.set()
        evictor = self._evictor
        if evictor is not None:
            evictor.stop()

    def close(self, timeout_seconds: float) -> bool:
        """End the thread, which leaves the lease; False if the storage does not let it go.

        It is then left behind, and ends when it comes back.
        """
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # Of this thread alone, on Linux: setpriority(2), "C library/kernel differences".
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        self._guarded("journal", self._read)  # from now on
        self._guarded("clock", self._read_clock)
        self._guarded("limits", self._judge)
        while not self._stop.wait(self._wait_seconds):
            self._wait_seconds = WAKE_SECONDS
            self._guarded("clock", self._read_clock)
            if time.monotonic() - self._renewed_at > RENEW_SECONDS:
                self._renewed_at = time.monotonic()
                self._guarded("namespace", self._renew)  # first: eviction needs its marker
            self._guarded("evict", self._evict)
            self._guarded("journal", self._read)
        self._turn.leave()

    def _read_clock(self) -> None:
        """Measured again when that is due; what cannot be measured is a fault, each time."""
        problem, before = self._clock.problem, self._clock.reading
        reading = self._clock.read()
        if reading is not before:
            with self._lock:
                self._news.clock = reading
                self.has_news = True
        if self._clock.problem is not None and self._clock.problem is not problem:
            raise self._clock.problem

    def _guarded(self, part: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, an engine goes on without eviction
            self._fault(part, error)

    def _fault(self, part: str, error: Exception) -> None:
        number = error.errno if isinstance(error, OSError) else None
        name = errno.errorcode.get(number or 0, "other")
        self._add_fault(
            Fault(part, name, f"{type(error).__name__}: {with_mend(error, self._root)}")
        )

    def _add_fault(self, fault: Fault) -> None:
        with self._lock:
            if len(self._news.faults) < FAULTS_MAX:
                self._news.faults.append(fault)
            self.has_news = True

    def _judge(self) -> None:
        """Tell of limits that nobody can keep on this volume."""
        if self._limits.volume_percent is None:
            return
        volume = volume_of(self._root)
        reason = unkept(self._limits, volume).get("volume_percent", "")
        if reason:
            reason = f"evict_percent limits nothing on {self._root}: {reason}"
        elif volume.doubt and self._limits.shelf_bytes is None:
            reason = f"evict_percent may limit nothing on {self._root}: {volume.doubt}"
        if reason:
            self._note("limits", f"{reason}; set evict_shelf_gb")

    def _note(self, cause: str, text: str) -> None:
        with self._lock:
            if len(self._news.notes) < FAULTS_MAX:
                self._news.notes.append((cause, text))
            self.has_news = True

    def _ask_for_room(self) -> bool:
        """Pass on that a store failed for lack of room; True: it is for this replica's evictor."""
        if not self._wants_room:
            return False
        self._wants_room = False
        with self._lock:
            self._news.room_requests += 1
            self.has_news = True
            is_holder = self._news.is_holder
        # Where nobody can be told, this replica may be the one that a full disk lets evict.
        return is_holder or not self._turn.ask_for_room()

    def _evict(self) -> None:
        """One step, if it is ours to do."""
        wants_room = self._ask_for_room()
        if not self._limits:
            return
        is_holder = self._turn.is_ours()
        self._holds(is_holder, is_standing_back=self._turn.stands_back)
        if not is_holder:
            return
        try:
            if self._evictor is None:
                told: OnRemoved = self._turn.removed
                self._evictor = self._make_evictor(
                    self._root, self._limits, on_removed=told, clock=self._clock
                )
            if self._turn.is_room_wanted() or wants_room:
                self._note("room", f"{self._root}: stores fail for lack of room: evicting")
                self._evictor.wants_room()
            report = self._evictor.step(self._step_seconds)
        except Exception as error:
            if isinstance(error, NotAShelfError):
                self._evictor = None  # what lies there later may be a shelf, as after a remount
            self._stand_back()
            raise
        self._tell(report)
        if report.gives_way:
            self._stand_back()
        else:
            self._turn.succeeded()
            self._wait_seconds = report.wait_seconds(WAKE_SECONDS)

    def _holds(self, is_holder: bool, *, is_standing_back: bool = False) -> None:
        """What this replica saw last stays told while it stands back: that it is stuck, say."""
        news = self._news
        if is_holder == news.is_holder and (is_standing_back or is_holder or news.state is None):
            return
        self._pass_since = None
        if not is_holder and self._evictor is not None:
            self._evictor.leave()
        with self._lock:
            self._news.is_holder = is_holder
            if not is_standing_back:
                self._news.shelf, self._news.held_chunks = {}, 0
                self._news.volume = self._news.state = None
            self.has_news = True

    def _stand_back(self) -> None:
        """Leave it to another for a while, who may be allowed or able to do it."""
        self._holds(False, is_standing_back=True)
        self._turn.stand_back()

    def _read(self) -> None:
        keys = self._reader.read()
        if not keys:
            return
        with self._lock:
            gone = self._news.gone
            room = max(0, KEYS_MAX - len(gone))
            gone.update(dict.fromkeys(keys[:room]))
            self._news.dropped += max(0, len(keys) - room)
            self.has_news = True

    def _tell(self, report: Report) -> None:
        now = time.monotonic()
        ended = None
        if report.state is State.EVICTING:
            self._pass_since = self._pass_since or now - report.seconds
        elif self._pass_since is not None or report.removed:
            ended = now - (self._pass_since or now - report.seconds)
            self._pass_since = None
        for number, times in report.faults.items():
            name = errno.errorcode.get(number, "other")
            text = str(report.held) if number in report.held.by_errno else os.strerror(number)
            self._add_fault(Fault("evict", name, text, times))
        shown = with_own_series(report.usage, kept=self._news.shelf)
        vain = report.unfreed.keys() - self._unfreed
        self._unfreed = frozenset(report.unfreed)
        with self._lock:
            news = self._news
            for reason in vain:
                text = f"{self._root}: {no_effect_text(reason, report.unfreed[reason])}"
                news.notes.append((f"eviction makes no room ({reason})", text))
                news.no_effect.append(reason)
            news.leftovers += report.leftovers
            self.has_news |= bool(vain or report.leftovers)
            news.removed_files += report.removed.files
            news.removed_bytes += report.removed.bytes
            news.pass_seconds = ended if ended is not None else news.pass_seconds
            known = shown, report.held.amount.files, report.volume, report.state
            before = news.shelf, news.held_chunks, news.volume, news.state
            if known != before or report.removed or ended is not None:
                news.shelf, news.held_chunks, news.volume, news.state = known
                self.has_news = True
