"""What an engine hears of eviction: gathered by the duty's thread, taken by the scheduler's."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.disk.clock import Reading
from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.limits import Amount
from kvshelf.upkeep.evict.mends import with_mend
from kvshelf.upkeep.evict.report import Report, State, no_effect_text
from kvshelf.upkeep.evict.series import with_own_series

# Keys that wait for the owner; more are forgotten, and found out by lookups.
KEYS_MAX = 65_536
# Faults that wait for the owner.
FAULTS_MAX = 100


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


class NewsBox:
    """Gathers ``News`` as a duty's ``Listener``.

    Threads: ``take`` and ``has_news`` are for the owner, all else for the duty's thread. The lock
    is never held across a system call.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unfreed: frozenset[str] = frozenset()
        self._usage: Mapping[str, Amount] | None = None  # of the last report
        self._pass_since: float | None = None
        self._lock = threading.Lock()
        self._news = News()
        self.has_news = False

    def take(self) -> News:
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

    def begins(self) -> None:
        self._holds(True)

    def waits(self, reason: str, holder: str) -> None:
        del reason, holder  # a fault of the lease is one already
        self._holds(False)

    def stands_back(self, *, can_remove: bool) -> None:
        del can_remove  # a fault, or the report, has said so
        self._holds(False, is_standing_back=True)

    def _holds(self, is_holder: bool, *, is_standing_back: bool = False) -> None:
        """What this replica saw last stays told while it stands back: that it is stuck, say."""
        news = self._news
        if is_holder == news.is_holder and (is_standing_back or is_holder or news.state is None):
            return
        self._pass_since = None
        with self._lock:
            self._news.is_holder = is_holder
            if not is_standing_back:
                self._news.shelf, self._news.held_chunks = {}, 0
                self._news.volume = self._news.state = None
            self.has_news = True

    def failed(self, part: str, error: Exception) -> None:
        number = error.errno if isinstance(error, OSError) else None
        name = errno.errorcode.get(number or 0, "other")
        text = f"{type(error).__name__}: {with_mend(error, self._root)}"
        self._add_fault(Fault(part, name, text))

    def noted(self, cause: str, text: str) -> None:
        with self._lock:
            if len(self._news.notes) < FAULTS_MAX:
                self._news.notes.append((cause, text))
            self.has_news = True

    def evicted(self, keys: Sequence[bytes]) -> None:
        """Somebody evicted these of the owner's namespace."""
        with self._lock:
            gone = self._news.gone
            room = max(0, KEYS_MAX - len(gone))
            gone.update(dict.fromkeys(keys[:room]))
            self._news.dropped += max(0, len(keys) - room)
            self.has_news = True

    def measured(self, clock: Reading | None) -> None:
        with self._lock:
            self._news.clock = clock
            self.has_news = True

    def wanted_room(self) -> None:
        """This replica's stores fail for lack of room."""
        with self._lock:
            self._news.room_requests += 1
            self.has_news = True

    def _add_fault(self, fault: Fault) -> None:
        with self._lock:
            if len(self._news.faults) < FAULTS_MAX:
                self._news.faults.append(fault)
            self.has_news = True

    def reported(self, report: Report) -> None:
        ended = self._pass_ended(report)
        for number, times in report.faults.items():
            name = errno.errorcode.get(number, "other")
            text = str(report.held) if number in report.held.by_errno else os.strerror(number)
            self._add_fault(Fault("evict", name, text, times))
        shelf = self._shelf(report)
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
            known = shelf, report.held.amount.files, report.volume, report.state
            before = news.shelf, news.held_chunks, news.volume, news.state
            if known != before or report.removed or ended is not None:
                news.shelf, news.held_chunks, news.volume, news.state = known
                self.has_news = True

    def _shelf(self, report: Report) -> Mapping[str, Amount]:
        """By namespace that has a series. Chosen anew when an evictor has looked again."""
        if report.usage is not self._usage or not self._news.shelf:
            self._usage = report.usage
            return with_own_series(report.usage, kept=self._news.shelf)
        return self._news.shelf

    def _pass_ended(self, report: Report) -> float | None:
        """Seconds that the pass took which has ended with this step, if one has."""
        now = time.monotonic()
        since = self._pass_since or now - report.seconds
        if report.state is State.EVICTING:
            self._pass_since = since
            return None
        is_pass = self._pass_since is not None or bool(report.removed)
        self._pass_since = None
        return now - since if is_pass else None
