"""What an evictor knows, and how far it may go: its phases, and the table of what ends them. Pure.

A limit that is exceeded is met in rounds. A round removes too little when the histogram of ages
promises more than there is. Then the evictor goes one phase on: it makes the histogram anew, then
lets chunks go whose last use is ahead of the file system's clock, then leaves that need alone.
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """One at a time, of the whole shelf."""

    LEARNING = "learning"
    """The first scan is not finished: what was scanned is a sample."""
    SAMPLED = "sampled"
    """The same, and chunks go by what the sample says."""
    SCANNED = "scanned"
    """A scan of all has ended, and limits were not looked at since."""
    RESTING = "resting"
    """No limit is exceeded."""
    EVICTING = "evicting"
    """A limit was exceeded: chunks go by a histogram from before, down to the low marks."""
    FRESH = "fresh"
    """The same by a histogram that was made since."""
    AHEAD = "ahead"
    """The same, and chunks used ahead of the file system's clock are candidates."""

    @property
    def is_known(self) -> bool:
        """Whether all folders were scanned once."""
        return self not in (Phase.LEARNING, Phase.SAMPLED)

    @property
    def is_evicting(self) -> bool:
        """Whether chunks go down to the low marks; else only when a limit is exceeded."""
        return self in (Phase.SAMPLED, Phase.EVICTING, Phase.FRESH, Phase.AHEAD)

    @property
    def is_fresh(self) -> bool:
        """Whether the histogram was made since the limit was exceeded."""
        return self in (Phase.SCANNED, Phase.FRESH, Phase.AHEAD)

    def after(self, event: Event) -> Phase:
        """The next phase.

        Raises:
            KeyError: this cannot happen in this phase.
        """
        return TRANSITIONS[event][self]


class Event(Enum):
    """What ends a phase, or leaves it as it is."""

    SCAN_ENDED = "scan ended"
    """All folders were scanned."""
    EXCEEDED = "exceeded"
    """A limit is exceeded that was not."""
    WITHIN = "within"
    """No limit is exceeded, or all are at their low marks."""
    SAMPLE_USED = "sample used"
    """A round by a sample has ended. Samples scatter: the next begins at the limit itself."""
    FRUITLESS = "fruitless"
    """A round by a fresh histogram removed nothing."""
    LEFT = "left"
    """Another evictor has the lease."""


_P = Phase
_REST = {
    _P.LEARNING: _P.LEARNING,
    _P.SAMPLED: _P.LEARNING,
    _P.SCANNED: _P.RESTING,
    _P.RESTING: _P.RESTING,
    _P.EVICTING: _P.RESTING,
    _P.FRESH: _P.RESTING,
    _P.AHEAD: _P.RESTING,
}
# What is not here cannot happen.
TRANSITIONS: dict[Event, dict[Phase, Phase]] = {
    Event.SCAN_ENDED: {
        _P.LEARNING: _P.SCANNED,
        _P.SAMPLED: _P.FRESH,
        _P.SCANNED: _P.SCANNED,
        _P.RESTING: _P.SCANNED,
        _P.EVICTING: _P.FRESH,
        _P.FRESH: _P.FRESH,
        _P.AHEAD: _P.AHEAD,
    },
    Event.EXCEEDED: {
        _P.LEARNING: _P.SAMPLED,
        _P.SCANNED: _P.FRESH,
        _P.RESTING: _P.EVICTING,
    },
    Event.WITHIN: _REST,
    Event.LEFT: _REST,
    Event.SAMPLE_USED: {_P.SAMPLED: _P.LEARNING},
    Event.FRUITLESS: {_P.FRESH: _P.AHEAD, _P.AHEAD: _P.EVICTING},
}
