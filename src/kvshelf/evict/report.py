"""What an evictor says after each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from kvshelf.evict.limits import Amount, Need, Volume
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
    STOPPED = "stopped"


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
        faults: how often each errno came.
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
    faults: Mapping[int, int] = field(default_factory=dict)
    clock_problem: str = ""
    seconds: float = 0.0

    @property
    def gives_way(self) -> bool:
        """Whether another evictor should try: this one can remove nothing of what is to go."""
        if self.removed:
            return False
        is_blocked = self.state is State.STUCK and any(need.amount for need in self.needs)
        return bool(self.faults) or is_blocked

    @property
    def shelf(self) -> Amount:
        """What is on the shelf."""
        return sum(self.usage.values(), Amount())

    def wait_seconds(self, interval_seconds: float) -> float:
        """Until the next step, if limits are looked at every ``interval_seconds``."""
        if self.state in (State.SCANNING, State.EVICTING):
            return 0.0
        return min(interval_seconds, SECONDS_MIN) if self.is_urgent else interval_seconds
