"""When steps begin and end, which says how fast the engine computes. Pure: time is given."""

from __future__ import annotations

from collections import deque


class StepClock:
    """Steps that are under way. A step lasts from its scheduling, or from the end of the one
    before it if that was later (vLLM schedules ahead), to its end. Scheduler's thread only.

    A step without tokens, as while a request waits for its load, is not always said to end: by a
    single worker only if it has news (vLLM's ModelRunnerOutput.with_kv_conn_output_only).

    Args:
        steps_max: under way at once (VllmConfig.max_concurrent_batches).
        tells_all: the end of every step is told: there are several workers.
    """

    def __init__(self, *, steps_max: int, tells_all: bool) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=steps_max)
        self._tells_all = tells_all
        self._last_end = float("-inf")

    def begins(self, tokens: int, now: float) -> None:
        self._steps.append((tokens, now))

    def ends(self, now: float, *, has_news: bool) -> tuple[int, float] | None:
        """Tokens and seconds of the oldest step that is under way.

        Args:
            has_news: vLLM would have told of this end also if the step had no tokens.
        """
        if not has_news and not self._tells_all:
            while self._steps and not self._steps[0][0]:
                self._steps.popleft()
        if not self._steps:
            return None
        tokens, began = self._steps.popleft()
        seconds = now - max(began, self._last_end)
        self._last_end = now
        return tokens, seconds
