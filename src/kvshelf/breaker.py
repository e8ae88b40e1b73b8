"""A circuit breaker: storage that does not answer is left alone until it does.

Pure: no I/O, no threads, no vLLM; the caller gives the time. One object a direction (reading,
writing), owned by the scheduler's thread. Source: M. Nygard, "Release It!", chapter "Circuit
Breaker"; the count of the last outcomes instead of consecutive ones, so that storage which fails
every other time is found out too.

    CLOSED -> OPEN      ``faults`` of the last 2 * faults - 1 outcomes were faults
    OPEN -> TRYING      after retry_seconds (and, for reading, once a probe was answered)
    TRYING -> CLOSED    the one request that was let through succeeded
    TRYING -> OPEN      it did not
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum


class State(IntEnum):
    """Values are those of the metric."""

    CLOSED = 0
    TRYING = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Change:
    """A transition, to be logged and counted.

    Attributes:
        cause: what failed last, or "" when it closes.
        open_seconds: how long it had been open when it closes, else 0.
    """

    state: State
    cause: str
    open_seconds: float


class Breaker:
    """
    Args:
        faults: how many faults among the last 2 * faults - 1 outcomes open it, at least 1.
        retry_seconds: how long storage is left alone before it is tried.
    """

    def __init__(self, *, faults: int, retry_seconds: float) -> None:
        self._faults = faults
        self._retry_seconds = retry_seconds
        self._outcomes: deque[bool] = deque(maxlen=2 * faults - 1)
        self._opened_at = 0.0
        self._retry_at = 0.0
        self._trial: str | None = None  # who was let through
        self._trial_ends = 0.0
        self._changes: list[Change] = []
        self.state = State.CLOSED

    def success(self, now: float) -> None:
        if self.state is State.TRYING:
            self._outcomes.clear()
            self._trial = None
            self._become(State.CLOSED, "", now - self._opened_at)
        elif self.state is State.CLOSED:
            self._outcomes.append(True)

    def fault(self, cause: str, now: float) -> None:
        if self.state is State.OPEN:  # what was under way when it opened
            return
        self._outcomes.append(False)
        if self.state is State.CLOSED:
            if self._outcomes.count(False) < self._faults:
                return
            self._opened_at = now
        self._trial = None
        self._retry_at = now + self._retry_seconds
        self._become(State.OPEN, cause, 0.0)

    def is_due(self, now: float) -> bool:
        """Whether it is open and the time has come to try."""
        return self.state is State.OPEN and now >= self._retry_at

    def answered(self) -> None:
        """A probe was answered, or none is needed: let one request through."""
        if self.state is State.OPEN:
            self._become(State.TRYING, "", 0.0)

    def not_answered(self, now: float) -> None:
        self._retry_at = now + self._retry_seconds

    def admits(self, who: str, now: float) -> bool:
        """Whether this request may use storage. While TRYING one may, and another after a while:
        the first may have found nothing to do there."""
        if self.state is not State.TRYING:
            return self.state is State.CLOSED
        if self._trial is None or now >= self._trial_ends:
            self._trial = who
            self._trial_ends = now + self._retry_seconds
        return self._trial == who

    def take_changes(self) -> list[Change]:
        changes, self._changes = self._changes, []
        return changes

    def _become(self, state: State, cause: str, open_seconds: float) -> None:
        self.state = state
        self._changes.append(Change(state, cause, open_seconds))
