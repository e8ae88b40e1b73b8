"""Any order of eviction, simulated request by request at one capacity. Pure.

The shelf of the simulation does what a real one does: a request hits up to its first missing
block, hits are touched, what was missing is stored; then, above the capacity, the blocks of the
largest age go, as many as the high and low marks of an evictor ask for. LRU needs none of this
(``kvshelf.plan.lru``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvshelf.plan.trace import Trace

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Blocks = NDArray[np.int32]
# upkeep.evict.policy.effective_age: (age, reused, seconds that the namespace is idle) -> age.
AgeFunction = Callable[[Floats, Bools, Floats], Floats]
# A chunk is touched so much earlier than the one before it in its request.
STEP_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Use:
    """A request came: those of its blocks that are not ``there`` are stored now."""

    request: int
    now: float
    blocks: Blocks
    there: Bools


class Order(Protocol):
    """Which blocks go first. Owned by one simulation."""

    def use(self, use: Use) -> None:
        """Take in a request, before anything is evicted for it."""

    def ages(self, resident: Blocks) -> Floats:
        """At the time of the last use; the blocks of the largest ages go."""


def plain_age(age: Floats, _reused: Bools, _idle: Floats) -> Floats:
    """LRU, as an ``AgeFunction``."""
    return age


class ByAge:
    """What an evictor sees: times by our touches, whether a chunk was used again, and no more.

    Args:
        age: of a chunk, from its last touch, whether it was touched since it was stored, and how
            long its namespace is idle.
        touch_interval_seconds: younger access times are not renewed, unless the request stores.
    """

    # From a chunk of a request to the next one: the head counts as used last.
    step = -STEP_SECONDS

    def __init__(
        self,
        trace: Trace,
        age: AgeFunction,
        *,
        touch_interval_seconds: float = 0.0,
    ) -> None:
        blocks = trace.distinct_blocks
        self._age = age
        self._interval = touch_interval_seconds
        self._accessed = np.full(blocks, -np.inf)
        self._stored = np.full(blocks, -np.inf)
        self._now = 0.0

    def use(self, use: Use) -> None:
        blocks, there = use.blocks, use.there
        now = self._now = use.now
        times = now + self.step * np.arange(len(blocks))
        if there.all():
            due = now - self._accessed[blocks] >= self._interval
            self._accessed[blocks[due]] = times[due]
            return
        self._accessed[blocks] = times
        # The touch of the request that stored a chunk is no reuse of it.
        self._stored[blocks[~there]] = np.maximum(times[~there], now)

    def ages(self, resident: Blocks) -> Floats:
        accessed = self._accessed[resident]
        return self._age(
            self._now - accessed, accessed > self._stored[resident], np.zeros(len(resident))
        )


@dataclass(frozen=True, slots=True)
class Simulated:
    """
    Attributes:
        hits: blocks of all requests that were there, up to the first missing one of each.
        stored: blocks written.
    """

    hits: int
    stored: int


def simulate(trace: Trace, capacity_blocks: int, order: Order, *, slack: float = 0.0) -> Simulated:
    """
    Args:
        slack: share of the capacity that an eviction frees beyond need: what lies between the high
            and the low mark. Without any, every request that stores sorts the whole shelf.
    """
    present = np.zeros(trace.distinct_blocks, dtype=bool)
    low = capacity_blocks - int(slack * capacity_blocks)
    held = hits = stored = 0
    offsets = trace.offsets.tolist()
    for request, now in enumerate(trace.seconds.tolist()):
        blocks = trace.blocks[offsets[request] : offsets[request + 1]]
        if not len(blocks):
            continue
        there = present[blocks]
        hit = len(blocks) if there.all() else int(there.argmin())
        order.use(Use(request, now, blocks, there))
        hits += hit
        if hit == len(blocks):
            continue
        new = len(blocks) - int(np.count_nonzero(there))
        present[blocks[hit:]] = True
        stored += new
        held += new
        if held > capacity_blocks:
            resident = np.flatnonzero(present).astype(np.int32)
            ages = order.ages(resident)
            going = np.argpartition(-ages, held - low - 1)[: held - low]
            present[resident[going]] = False
            held = low
    return Simulated(hits, stored)
