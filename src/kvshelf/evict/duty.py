"""Eviction as a background duty of an engine: whichever replica holds the lease does it.

    thread:  lease -> Evictor.step -> journal        (the holder)
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kvshelf.evict.evictor import Evictor, OnRemoved, Report, State
from kvshelf.evict.journal import RemovedReader, RemovedWriter
from kvshelf.evict.lease import Lease, open_lease
from kvshelf.evict.limits import Limits

# A limit is looked at so often, and the journal too.
WAKE_SECONDS = 1.0
# Between two steps the lease is looked at. The holder trusts it for two thirds of its time.
STEP_SECONDS = 0.5
# The folder of the journal is cleaned so often, by the holder.
CLEAN_SECONDS = 60.0
# Keys that wait for the owner; more are forgotten, and found out by lookups.
KEYS_MAX = 65_536
# Faults that wait for the owner.
FAULTS_MAX = 100
# Who holds the lease and cannot evict leaves it alone for so long.
STAND_BACK_SECONDS = 60.0
_NICE = 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class News:
    """What happened since the owner last asked.

    Attributes:
        is_holder: whether this replica holds the lease.
        removed_files, removed_bytes: that this replica evicted.
        gone: keys of this replica's namespace that somebody evicted.
        dropped: keys that were not kept for the owner.
        shelf_bytes: of all chunks, as the holder knows them; 0 for others.
        pass_seconds: from crossing a limit to being within it again, of the last pass; None: none
            ended.
        faults: (what failed, text) in the order in which they came.
    """

    is_holder: bool = False
    removed_files: int = 0
    removed_bytes: int = 0
    gone: dict[bytes, None] = field(default_factory=dict)
    dropped: int = 0
    shelf_bytes: int = 0
    pass_seconds: float | None = None
    faults: list[tuple[str, str]] = field(default_factory=list)


class Steps(Protocol):
    """The part of ``Evictor`` that is used here."""

    def step(self, seconds_max: float = 1.0) -> Report: ...
    def stop(self) -> None: ...


class EvictionDuty:
    """One thread that evicts while this process holds the lease, and reads what others evict.

    Args:
        root: the shelf.
        folder: the namespace whose removed keys are wanted.
        limits: what the shelf may take; without any, only the journal is read.
        lease_seconds: see ``Lease``.
        evictor: makes it; called when the lease is first held.

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
    ) -> None:
        self._root = Path(root)
        self._limits = limits
        self._lease = lease or open_lease(
            root, lease_seconds=lease_seconds, dir_mode=dir_mode, file_mode=file_mode
        )
        self._step_seconds = min(STEP_SECONDS, lease_seconds / 10)
        self._make_evictor = evictor
        self._evictor: Steps | None = None
        self._reader = RemovedReader(root, folder)
        self._writer = RemovedWriter(
            root, self._lease.token, dir_mode=dir_mode, file_mode=file_mode
        )
        self._clean_at = 0.0
        self._stand_back_until = 0.0
        self._pass_since: float | None = None
        self._lock = threading.Lock()  # never held across a system call
        self._news = News()
        self.has_news = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvshelf-evict", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self) -> News:
        """What happened since the last call."""
        with self._lock:
            news, self.has_news = self._news, False
            self._news = News(is_holder=news.is_holder, shelf_bytes=news.shelf_bytes)
        return news

    def close(self, timeout_seconds: float) -> bool:
        """End the thread, which leaves the lease; False if the storage does not let it go.

        It is then left behind, and does nothing more when it comes back.
        """
        self._stop.set()
        evictor = self._evictor
        if evictor is not None:
            evictor.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # Of this thread alone, on Linux: setpriority(2), "C library/kernel differences".
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        wait_seconds = WAKE_SECONDS
        while not self._stop.wait(wait_seconds):
            is_busy = self._guarded("evict", self._evict)
            self._guarded("journal", self._read)
            wait_seconds = 0.0 if is_busy else WAKE_SECONDS
        self._guarded("lease", self._lease.release)

    def _guarded(self, what: str, work: Callable[[], bool | None]) -> bool:
        try:
            return bool(work())
        except Exception as error:  # whatever it is, an engine goes on without eviction
            text = f"{type(error).__name__}: {error}"
            self._fault(what, text)
            return False

    def _fault(self, what: str, text: str) -> None:
        with self._lock:
            if len(self._news.faults) < FAULTS_MAX:
                self._news.faults.append((what, text))
            self.has_news = True

    def _evict(self) -> bool:
        """One step, if it is ours to do; True if the next should follow at once."""
        if not self._limits or time.monotonic() < self._stand_back_until:
            return False
        is_holder = self._may_evict()
        with self._lock:
            if is_holder != self._news.is_holder:
                self._news.is_holder, self.has_news = is_holder, True
                self._news.shelf_bytes = 0
        if not is_holder:
            self._pass_since = None
            return False
        try:
            if self._evictor is None:
                on_removed: OnRemoved = self._removed
                self._evictor = self._make_evictor(self._root, self._limits, on_removed=on_removed)
            report = self._evictor.step(self._step_seconds)
        except Exception:
            self._stand_back()
            raise
        self._tell(report)
        if report.faults and not report.removed:
            self._stand_back()
        if time.monotonic() >= self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_SECONDS
            self._guarded("journal", lambda: bool(self._writer.clean()))
        return report.state in (State.SCANNING, State.EVICTING)

    def _stand_back(self) -> None:
        """Leave it to another for a while, who may be allowed or able to do it."""
        self._stand_back_until = time.monotonic() + STAND_BACK_SECONDS
        with self._lock:
            self._news.is_holder, self._news.shelf_bytes, self.has_news = False, 0, True
        self._lease.release()

    def _may_evict(self) -> bool:
        try:
            return self._lease.tick()
        except OSError as error:
            # On a disk so full that not even a name can change, somebody must begin. If several
            # do, they remove what one would have removed.
            if error.errno in _FULL:
                return True
            self._fault("lease", f"{type(error).__name__}: {error}")
            return False

    def _removed(self, folder: str, rank: int, keys: Sequence[bytes]) -> None:
        del rank  # a chunk of which one rank's file is gone is gone
        self._guarded("journal", lambda: self._writer.append(folder, keys))

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
        elif self._pass_since is not None:
            ended, self._pass_since = now - self._pass_since, None
        shelf_bytes = report.shelf.bytes
        for number, count in report.faults.items():
            self._fault("evict", f"{os.strerror(number)} ({count} times)")
        with self._lock:
            news = self._news
            news.removed_files += report.removed.files
            news.removed_bytes += report.removed.bytes
            news.pass_seconds = ended if ended is not None else news.pass_seconds
            if shelf_bytes != news.shelf_bytes or report.removed or ended:
                news.shelf_bytes = shelf_bytes
                self.has_news = True
