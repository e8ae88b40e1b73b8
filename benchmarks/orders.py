"""Orders of eviction that nobody deploys, for ``kvshelf.plan.simulate``: bounds and comparisons."""

from __future__ import annotations

import numpy as np

from kvshelf.plan.simulate import STEP_SECONDS, AgeFunction, Blocks, ByAge, Floats, Use
from kvshelf.plan.trace import Trace, previous_positions

# Later than any request, and small enough to tell depths apart.
_NEVER = 1e9


class ByStore:
    """FIFO: the order in which blocks were stored."""

    def __init__(self, trace: Trace) -> None:
        self._stored = np.full(trace.distinct_blocks, -np.inf)

    def use(self, use: Use) -> None:
        new = np.flatnonzero(~use.there)
        self._stored[use.blocks[new]] = use.now - STEP_SECONDS * new

    def ages(self, resident: Blocks) -> Floats:
        return -self._stored[resident]


class AtRandom:
    """No order at all."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    def use(self, use: Use) -> None:
        pass

    def ages(self, resident: Blocks) -> Floats:
        return self._random.random(len(resident))


class Optimum:
    """The block that is used again last goes first, which needs the future.

    No order has more hits (Belady, "A study of replacement algorithms", 1966): of blocks whose next
    use is the same request the deeper goes first, so that what is left of a chain is always its
    head, and every block that is there is a hit.
    """

    def __init__(self, trace: Trace) -> None:
        previous = previous_positions(trace.blocks)
        of_request = np.repeat(np.arange(trace.requests), np.diff(trace.offsets))
        self._next = np.full(len(trace.blocks), _NEVER)
        again = np.flatnonzero(previous >= 0)
        self._next[previous[again]] = of_request[again]
        self._offsets = trace.offsets
        self._next_of_block = np.full(trace.distinct_blocks, _NEVER)
        self._depth = np.zeros(trace.distinct_blocks)

    def use(self, use: Use) -> None:
        begin, blocks = self._offsets[use.request], use.blocks
        self._next_of_block[blocks] = self._next[begin : begin + len(blocks)]
        # Less than a request between two; no prompt has a million blocks.
        self._depth[blocks] = 1e-6 * np.arange(len(blocks))

    def ages(self, resident: Blocks) -> Floats:
        ages: Floats = self._next_of_block[resident] + self._depth[resident]
        return ages


def stepped(trace: Trace, age: AgeFunction, step_seconds: float) -> ByAge:
    """Another time from a request's chunk to the next one; above 0 the tail is used last."""
    order = ByAge(trace, age)
    order.step = step_seconds
    return order
