"""What an evictor says after each step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from kvshelf.evict.limits import Amount, Need, Volume, total
from kvshelf.evict.refresh import SECONDS_MIN


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
    seconds: float = 0.0

    def complaints(self) -> Iterator[str]:
        """What an operator should mend, in words: what is held, and what could not be seen."""
        if self.held.amount.files:
            yield str(self.held)
        if self.unseen:
            yield f"{self.unseen} folders could not be looked into, so their chunks do not count"

    @property
    def shelf(self) -> Amount:
        """What is on the shelf."""
        return total(self.usage)

    def wait_seconds(self, interval_seconds: float) -> float:
        """Until the next step, if limits are looked at every ``interval_seconds``."""
        if self.state in (State.SCANNING, State.EVICTING):
            return 0.0
        return min(interval_seconds, SECONDS_MIN) if self.is_urgent else interval_seconds
