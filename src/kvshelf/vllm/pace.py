"""How fast the engine computes, as seen from its scheduler. Pure; the caller gives the time."""

from __future__ import annotations

from collections import deque

# vLLM schedules one step ahead. Steps whose end is never told are forgotten beyond that.
_STEPS_MAX = 2


class Pace:
    """Steps that are under way. A step lasts from its scheduling, or from the end of the one
    before it if that was later (vLLM schedules ahead), to its end. Scheduler's thread only."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=_STEPS_MAX)
        self._last_end = float("-inf")

    def begins(self, tokens: int, now: float) -> None:
        self._steps.append((tokens, now))

    def ends(self, now: float) -> tuple[int, float] | None:
        """Tokens and seconds of the oldest step that is under way."""
        if not self._steps:
            return None
        tokens, began = self._steps.popleft()
        seconds = now - max(began, self._last_end)
        self._last_end = now
        return tokens, seconds
