"""Whether a hit is loaded: ``Admission`` decides, and what it does not know is measured.

Scheduler's thread only; nothing here waits for storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kvshelf.engine import FileStatus, JobResult
from kvshelf.vllm.scheduler.admission import MEASURED_CHUNKS, Admission, Verdict, spread
from kvshelf.vllm.scheduler.breakers import Breakers
from kvshelf.vllm.scheduler.lookups import Lookups

# A measurement reads so much of each of MEASURED_CHUNKS files. A request waits for it for a share
# of the time that computing it takes, within bounds: a few steps, and what a user notices.
MEASURED_BYTES = 8 << 20
MEASURE_WAIT_SHARE = 0.1
MEASURE_WAIT_SECONDS = (0.025, 0.05)
_NEVER = float("-inf")


class Measuring:
    def __init__(self, admission: Admission, lookups: Lookups, breakers: Breakers) -> None:
        self._admission = admission
        self._lookups = lookups
        self._breakers = breakers
        self._since = _NEVER

    def admits(self, tokens: int, chunks: int, keys: Callable[[], Sequence[bytes]]) -> bool | None:
        """Whether a hit of so many tokens and chunks is loaded; None: ask again in a moment.

        ``keys`` gives the chunks' keys if they must be measured.
        """
        now = time.monotonic()
        verdict = self._admission.decide(tokens, chunks, now)
        if verdict is Verdict.MEASURE:
            self._measure(keys, now)
            wait_seconds = MEASURE_WAIT_SHARE * self._admission.compute_seconds(tokens)
            low, high = MEASURE_WAIT_SECONDS
            if now - self._since < min(max(low, wait_seconds), high):
                return None
            # Storage that takes so long to say how fast it is would not be worth it.
            verdict = Verdict.COMPUTE
        return verdict is not Verdict.COMPUTE

    def _measure(self, keys: Callable[[], Sequence[bytes]], now: float) -> None:
        """Begin to measure the storage by some of these chunks, unless that is under way."""
        if self._since > _NEVER:
            return

        chosen = spread(keys(), MEASURED_CHUNKS)

        def done(result: JobResult) -> None:
            self._since = _NEVER
            end, statuses = time.monotonic(), result.statuses
            if self._breakers.measured(chosen, statuses, end) and FileStatus.OK in statuses:
                self._admission.measured(result.payload_bytes, result.seconds, end)

        if self._lookups.probe(chosen, MEASURED_BYTES, done):
            self._since = now
