"""What an evictor says after each step."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from kvshelf.disk.volume import Volume
from kvshelf.text import bytes_text
from kvshelf.upkeep.evict.limits import Amount, Need, total
from kvshelf.upkeep.evict.refresh import SECONDS_MIN

if TYPE_CHECKING:
    from kvshelf.upkeep.evict.native import Work

# How often the volume is looked at while it must show what went.
_SETTLING_SECONDS = 0.25


class State(Enum):
    """What an evictor does."""

    SCANNING = "scanning"
    """It does not yet know the whole shelf."""
    IDLE = "idle"
    """No limit is exceeded."""
    EVICTING = "evicting"
    """A limit was exceeded, and the low mark is not yet reached."""
    STUCK = "stuck"
    """A limit is exceeded, but nothing more may or can be removed."""
    BLIND = "blind"
    """No limit is exceeded as far as is known, but some folders could not be looked into."""
    STOPPED = "stopped"


# A state's number in metrics is its place here; STOPPED has none.
STATES = (State.IDLE, State.SCANNING, State.EVICTING, State.STUCK, State.BLIND)


@dataclass(frozen=True, slots=True)
class Held:
    """Chunk files that the file system refused to remove. They are tried again after a while.

    Attributes:
        by_errno: how many, by the errno that came.
        examples: paths beneath the root, a few.
    """

    amount: Amount = field(default_factory=Amount)
    by_errno: Mapping[int, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Name reasons and examples, for people."""
        causes = ", ".join(f"{os.strerror(code)}: {n}" for code, n in self.by_errno.items())
        shown = ", ".join(self.examples)
        return f"{self.amount.files} chunks cannot be removed ({causes}), such as {shown}"


@dataclass(frozen=True, slots=True)
class Report:
    """What one step saw and did.

    Attributes:
        usage: what is on the shelf, by namespace; estimated while ``state`` is SCANNING.
        needs: what is still to go.
        removed: what went in this step; with ``dry_run`` what would have gone.
        cut_age_seconds: all chunks unused for longer than this go; None if none were chosen.
        looked_at: files that were looked at, one by one.
        spared: files that were to go, and stay because they were used meanwhile.
        is_urgent: what came since the last look at the shelf may exceed a limit.
        foreign: how much lies on the shelf that is not kvshelf's, with a few examples.
        unread: namespaces that may not be read: what lies in them does not count, and stays.
        held: what the file system refused to remove.
        unseen: folders that could not be looked into: what lies in them may not be known.
        faults: how often each errno came.
        is_settling: nothing goes until the volume shows what went.
        unfreed: limits that removal does not help to keep, because the volume does not show what
            went, and the bytes (``inode_percent``: files) of which that is so; "stores_failed":
            chunks went for them, and stores fail all the same.
        leftovers: files of dead writers that went in this step.
        room_requests: how often stores failed for lack of room, since the evictor was made.
        clock_problem: why ages do not count by the file system's clock; empty if they do.
    """

    state: State
    volume: Volume
    usage: Mapping[str, Amount] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()
    removed: Amount = field(default_factory=Amount)
    cut_age_seconds: float | None = None
    looked_at: int = 0
    spared: int = 0
    is_urgent: bool = False
    foreign: int = 0
    foreign_examples: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    held: Held = field(default_factory=Held)
    unseen: int = 0
    faults: Mapping[int, int] = field(default_factory=dict)
    clock_problem: str = ""
    seconds: float = 0.0
    is_settling: bool = False
    unfreed: Mapping[str, int] = field(default_factory=dict)
    leftovers: Amount = field(default_factory=Amount)
    room_requests: int = 0

    def complaints(self) -> Iterator[str]:
        """What an operator should mend, in words: what is held, and what could not be seen."""
        if self.held.amount.files:
            yield str(self.held)
        if self.unseen:
            yield f"{self.unseen} folders could not be looked into, so their chunks do not count"

    @property
    def gives_way(self) -> bool:
        """Whether another evictor should try: this one can remove nothing of what is to go."""
        if self.removed:
            return False
        # Where removal makes no room, each of several evictors would try it on chunks of its own.
        wanted = [need for need in self.needs if need.reason not in self.unfreed]
        is_blocked = self.state is State.STUCK and any(need.amount for need in wanted)
        return bool(self.faults) or is_blocked

    @property
    def shelf(self) -> Amount:
        """What is on the shelf."""
        return total(self.usage)

    def wait_seconds(self, interval_seconds: float) -> float:
        """Until the next step, if limits are looked at every ``interval_seconds``."""
        if self.is_settling:
            return min(interval_seconds, _SETTLING_SECONDS)
        if self.state in (State.SCANNING, State.EVICTING):
            return 0.0
        return min(interval_seconds, SECONDS_MIN) if self.is_urgent else interval_seconds


def no_effect_text(reason: str, amount: int) -> str:
    """That removal does not help, what that means and what to do, for a log line.

    Args:
        reason: the limit, by its name in ``Limits``, or "stores_failed".
        amount: bytes, or for "inode_percent" files, of which the volume shows nothing.
    """
    if reason == "stores_failed":
        return (
            "evicted a third of the shelf, and stores still fail for lack of room: suspended, and "
            "tried again later; look at the quota, and at what else it counts"
        )
    what = f"{amount} files" if reason == "inode_percent" else bytes_text(amount)
    return (
        f"evicted {what}, and the file system does not show them as free: a snapshot, hard links "
        "(a backup), a trash folder or open descriptors keep them; eviction is suspended, and "
        "tried again later or when the numbers move"
    )


@dataclass(slots=True)
class StepLog:
    """What the parts of one step did."""

    removed: Amount = field(default_factory=Amount)
    leftovers: Amount = field(default_factory=Amount)
    looked_at: int = 0
    spared: int = 0
    faults: Counter[int] = field(default_factory=Counter)
    cut_age_seconds: float | None = None
    is_settling: bool = False

    def add(self, work: Work) -> Work:
        self.looked_at += work.files
        self.spared += work.spared
        self.faults.update(work.faults)
        return work
