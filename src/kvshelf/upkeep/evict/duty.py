"""The one loop that evicts: in a thread of an engine, or of ``kvshelf evict``.

    thread:  Turn -> Evictor.step -> journal         (the holder of the lease)
             journal -> keys that are gone           (every engine)
    owner:   a Listener hears of every step, or takes News

The thread makes all the file-system calls and may hang in one; its owner never waits for it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kvshelf.disk.clock import FileClock
from kvshelf.disk.threads import start
from kvshelf.disk.volume import volume_of
from kvshelf.upkeep.evict.effect import unkept
from kvshelf.upkeep.evict.evictor import Evictor, OnRemoved
from kvshelf.upkeep.evict.journal import RemovedReader
from kvshelf.upkeep.evict.lease import Lease
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.news import News, NewsBox
from kvshelf.upkeep.evict.report import Report
from kvshelf.upkeep.evict.turn import Turn

# Limits are looked at so often, and the journal too.
WAKE_SECONDS = 1.0
# Between two steps the lease is looked at. The holder trusts it for two thirds of its time.
STEP_SECONDS = 0.5
# A step without a lease.
ALONE_SECONDS = 1.0
# So long chunks may lie in a folder that eviction does not know: two calls each time.
RENEW_SECONDS = 10.0
_NICE = 10


class Listener(Protocol):
    """Hears what a duty does, in its thread."""

    def begins(self) -> None:
        """It is this process's turn: a step follows."""

    def waits(self, reason: str, holder: str) -> None:
        """It is the turn of this other process ("" if that is not known), or nobody's for this
        reason."""

    def reported(self, report: Report) -> None:
        """A step has ended."""

    def stands_back(self, *, can_remove: bool) -> None:
        """This process left the lease to another: a step failed, or it can remove nothing."""

    def failed(self, part: str, error: Exception) -> None:
        """A part of the work failed, and is tried again."""

    def noted(self, cause: str, text: str) -> None:
        """Something that a log should have."""


class EvictionDuty:
    """One thread that evicts while this process holds the lease, and reads what others evict.

    Args:
        root: the shelf.
        folder: the namespace of an engine, which wants its removed keys and the file system's
            clock; None for an owner that wants neither.
        limits: what the shelf may take; without any, only the journal is read.
        lease_seconds: see ``Lease``.
        evictor: makes it; called when the lease is first held, and after a step that failed.
        renew: makes the namespace again if it is gone; called now and then.
        listener: hears of all; None: ``take`` tells.
        by_turns: whether the lease counts; else every step is this process's.
        interval_seconds: limits are looked at so often; None: ``WAKE_SECONDS``.

    Threads: ``take``, ``has_news``, ``ended`` and ``close`` are for one owner, and never wait for
    storage; ``stop`` may be called from any thread, and by the listener.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        folder: str | None,
        *,
        limits: Limits,
        lease_seconds: float,
        dir_mode: int = 0o2770,
        file_mode: int = 0o640,
        evictor: Callable[..., Evictor] = Evictor,
        lease: Lease | None = None,
        renew: Callable[[], None] = lambda: None,
        listener: Listener | None = None,
        by_turns: bool = True,
        interval_seconds: float | None = None,
    ) -> None:
        self._root = Path(root)
        self._box = NewsBox(self._root)
        self._listener: Listener = listener or self._box
        self._renew = renew
        self._renewed_at = time.monotonic()
        self._limits = limits
        self._by_turns = by_turns
        self._interval_seconds = interval_seconds
        self._turn = Turn(
            root,
            lease_seconds=lease_seconds,
            on_fault=self._listener.failed,
            dir_mode=dir_mode,
            file_mode=file_mode,
            lease=lease,
        )
        self._is_holder = False
        self._clock = FileClock(root, file_mode=file_mode)
        self._step_seconds = min(STEP_SECONDS, lease_seconds / 10) if by_turns else ALONE_SECONDS
        self._make_evictor = evictor
        self._evictor: Evictor | None = None
        self._reader = RemovedReader(root, folder) if folder is not None else None
        self._wants_room = False  # set by the owner, taken by the thread
        self._wait_seconds = 0.0  # before the thread looks again
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvshelf-evict", daemon=True)

    def start(self) -> None:
        """
        Raises:
            ResourceError: no thread is to be had.
        """
        start(self._thread)

    @property
    def has_news(self) -> bool:
        """Whether ``take`` has something to tell."""
        return self._box.has_news

    def take(self) -> News:
        """What happened since the last call, if there is no other listener."""
        return self._box.take()

    def want_room(self) -> None:
        """A store of this replica failed for lack of room: whoever evicts is to make some."""
        self._wants_room = True

    def stop(self) -> None:
        """Tell the thread to end; ``close`` waits for it."""
        self._stop.set()
        evictor = self._evictor
        if evictor is not None:
            evictor.stop()

    def ended(self, timeout_seconds: float) -> bool:
        """Wait for the thread; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def close(self, timeout_seconds: float) -> bool:
        """End the thread, which leaves the lease; False if the storage does not let it go.

        It is then left behind, and ends when it comes back.
        """
        self.stop()
        return self.ended(timeout_seconds)

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # Of this thread alone, on Linux: setpriority(2), "C library/kernel differences".
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        if self._reader is not None:
            self._guarded("journal", self._read)  # from now on
            self._guarded("limits", self._judge)
        while not self._stop.wait(self._wait_seconds):
            self._wait_seconds = self._interval()
            if self._reader is not None:
                self._guarded("clock", self._read_clock)
            if time.monotonic() - self._renewed_at > RENEW_SECONDS:
                self._renewed_at = time.monotonic()
                self._guarded("namespace", self._renew)  # first: eviction needs its marker
            self._guarded("evict", self._evict)
            self._guarded("journal", self._read)
        self._turn.leave()

    def _interval(self) -> float:
        return WAKE_SECONDS if self._interval_seconds is None else self._interval_seconds

    def _read_clock(self) -> None:
        """Measured again when that is due; what cannot be measured is a fault, each time."""
        problem, before = self._clock.problem, self._clock.reading
        reading = self._clock.read()
        if reading is not before:
            self._box.measured(reading)
        if self._clock.problem is not None and self._clock.problem is not problem:
            raise self._clock.problem

    def _guarded(self, part: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, an engine goes on without eviction
            self._listener.failed(part, error)

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
            self._listener.noted("limits", f"{reason}; set evict_shelf_gb")

    def _ask_for_room(self) -> bool:
        """Pass on that a store failed for lack of room; True: it is for this replica's evictor."""
        if not self._wants_room:
            return False
        self._wants_room = False
        self._box.wanted_room()
        # Where nobody can be told, this replica may be the one that a full disk lets evict.
        return self._is_holder or not self._turn.ask_for_room()

    def _evict(self) -> None:
        """One step, if it is ours to do."""
        wants_room = self._ask_for_room()
        if not self._limits or not self._is_ours():
            return
        try:
            if self._evictor is None:
                told: OnRemoved = self._turn.removed
                self._evictor = self._make_evictor(
                    self._root, self._limits, on_removed=told, clock=self._clock
                )
                if self._stop.is_set():  # by an owner that did not see it
                    return
            if (self._by_turns and self._turn.is_room_wanted()) or wants_room:
                text = f"{self._root}: stores fail for lack of room: evicting"
                self._listener.noted("room", text)
                self._evictor.wants_room()
            report = self._evictor.step(self._step_seconds)
        except Exception:
            self._evictor = None  # what lies there later may be another shelf, as after a remount
            self._stand_back(can_remove=True)
            raise
        self._listener.reported(report)
        if report.gives_way:
            self._stand_back(can_remove=False)
        else:
            self._turn.succeeded()
            self._wait_seconds = report.wait_seconds(self._interval())

    def _is_ours(self) -> bool:
        if not self._by_turns:
            return True
        was_back = self._turn.stands_back
        is_holder = self._turn.is_ours()
        if is_holder:
            self._listener.begins()
        elif not was_back:
            failure = self._turn.failure
            reason = "" if failure is None else f"the lease cannot be used: {failure}"
            self._listener.waits(reason, self._turn.holder)
        self._holds(is_holder)
        return is_holder

    def _holds(self, is_holder: bool) -> None:
        if self._is_holder and not is_holder and self._evictor is not None:
            self._evictor.leave()
        self._is_holder = is_holder

    def _stand_back(self, *, can_remove: bool) -> None:
        """Leave it to another for a while, who may be allowed or able to do it."""
        if not self._by_turns:
            return
        self._listener.stands_back(can_remove=can_remove)
        self._holds(False)
        self._turn.stand_back()

    def _read(self) -> None:
        keys = self._reader.read() if self._reader is not None else ()
        if keys:
            self._box.evicted(keys)
