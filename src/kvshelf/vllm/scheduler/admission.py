"""Whether to load a hit or to compute it: whichever is faster, as far as it was measured.

Pure: no I/O, no threads, no vLLM; the caller gives the time. Owned by the scheduler's thread.

    load time     chunks / rate of loading
    compute time  tokens / rate of computing

Neither counts what waits before it: if all of many requests load, each waits for the others, but
if all compute, each waits for the others too, and longer.

Rates are those of the last seconds in which there was something to do. The rate of loading comes
from loads, and from a measurement (``Shelf.submit_probe``) when nothing is known, or when an old
rate speaks against loading: without it, storage that was slow once would never be used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

# Until an engine has computed anything: the order of magnitude of an 8B model on an H100 (38,000).
PRIOR_TOKENS_PER_SECOND = 20_000.0
# An estimate is of so many seconds of work, more or less.
_WINDOW_SECONDS = 2.0
# After so long without a load, a rate that speaks against loading is measured again.
_STALE_SECONDS = 30.0
# And not more often than this, since it is work for the storage.
_MEASURE_INTERVAL_SECONDS = 2.0
# Chunks that a measurement reads of at once.
MEASURED_CHUNKS = 8
_SMALL_FACTOR = 4
# A rate of less evidence than this may be wrong by the time that a first load or a thread takes to
# get going: it must speak against loading by a factor. (On an H100 the first load took 150 ms, the
# second 12, and 8 MiB read at once seemed to come at a tenth of the speed of loads.)
_CERTAIN_SECONDS = 0.25
_UNCERTAIN_MARGIN = 2.0
# Steps with fewer tokens decode, which says nothing about prefill.
_PREFILL_TOKENS_MIN = 64


class Verdict(Enum):
    LOAD = "load"
    COMPUTE = "compute"
    MEASURE = "measure"


@dataclass(slots=True)
class Rate:
    """Amount a second, of about the last ``_WINDOW_SECONDS`` of work."""

    amount: float = 0.0
    seconds: float = 0.0

    def add(self, amount: float, seconds: float) -> None:
        self.amount += amount
        self.seconds += seconds
        while self.seconds > 2 * _WINDOW_SECONDS:
            self.amount /= 2
            self.seconds /= 2

    def value(self) -> float | None:
        return self.amount / self.seconds if self.seconds > 0 else None


@dataclass(slots=True)
class Admission:
    """
    Attributes:
        min_hit_tokens: shorter hits are computed.
        compare: whether times are compared; otherwise all other hits are loaded.
        chunk_bytes: of all ranks, to turn measured bytes into chunks.
    """

    min_hit_tokens: int
    compare: bool
    chunk_bytes: int
    _loading: Rate = field(default_factory=Rate)
    _computing: Rate = field(default_factory=Rate)
    _waiting_chunks: float = 0.0  # a whole number but for rounding: ranks tell their shares
    _known_at: float = float("-inf")
    _measured_at: float = float("-inf")
    _largest_chunks: float = 0.0  # of the loads that the rate comes from

    def load_begins(self, chunks: int) -> None:
        self._waiting_chunks += chunks

    def load_ends(self, chunks: float, loaded: float, busy_seconds: float, now: float) -> None:
        """A load of ``chunks`` is over and ``loaded`` of them came; it added so much to the time
        in which there were loads at all."""
        self._waiting_chunks = max(0.0, self._waiting_chunks - chunks)
        self._known_at = now
        if loaded < chunks:
            # Waiting for nothing is no speed: whether to use such storage is the breaker's matter.
            self._loading, self._largest_chunks = Rate(), 0.0
            return
        self._loading.add(loaded, busy_seconds)
        self._largest_chunks = max(self._largest_chunks, chunks)

    def measured(self, read_bytes: float, seconds: float, now: float) -> None:
        """Replaces what was known: it is measured because that is old or nothing."""
        self._loading = Rate()
        self._loading.add(read_bytes / self.chunk_bytes, max(seconds, 1e-6))
        self._known_at = self._measured_at = now
        self._largest_chunks = MEASURED_CHUNKS

    def computed(self, tokens: int, seconds: float) -> None:
        """A step of the engine computed so many tokens."""
        if tokens >= _PREFILL_TOKENS_MIN and seconds > 0:
            self._computing.add(tokens, seconds)

    def compute_seconds(self, tokens: int) -> float:
        return tokens / (self._computing.value() or PRIOR_TOKENS_PER_SECOND)

    def decide(self, tokens: int, chunks: int, now: float) -> Verdict:
        if tokens < self.min_hit_tokens:
            return Verdict.COMPUTE
        if not self.compare:
            return Verdict.LOAD
        rate = self._loading.value()
        if rate is None:
            return Verdict.MEASURE
        margin = 1.0 if self._loading.seconds >= _CERTAIN_SECONDS else _UNCERTAIN_MARGIN
        if chunks / max(rate, 1e-9) <= margin * self.compute_seconds(tokens):
            return Verdict.LOAD
        return Verdict.MEASURE if self._is_doubtful(chunks, now) else Verdict.COMPUTE

    def _is_doubtful(self, chunks: int, now: float) -> bool:
        """Whether what is known is too old to speak against loading, or comes from loads so much
        smaller that they did not show what storage can do."""
        if now - self._measured_at < _MEASURE_INTERVAL_SECONDS or self._waiting_chunks >= 0.5:
            return False
        small = chunks > _SMALL_FACTOR * self._largest_chunks
        return small or now - self._known_at > _STALE_SECONDS


def spread(keys: Sequence[bytes], count: int) -> list[bytes]:
    """``count`` of the keys, evenly spread, or all of them."""
    if len(keys) <= count:
        return list(keys)
    return [keys[i * len(keys) // count] for i in range(count)]
