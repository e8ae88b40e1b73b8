"""Orders of eviction, simulated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from benchmarks.orders import AtRandom, ByStore, Optimum
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshelf.plan.lru import lru_curve
from kvshelf.plan.simulate import ByAge, Floats, Order, Use, plain_age, simulate
from kvshelf.plan.trace import Trace
from kvshelf.upkeep.evict.policy import effective_age
from tests.plan.traces import blocks_of, conversations, trace_of, traces


@settings(deadline=None, max_examples=100)
@given(traces(), st.integers(1, 40))
def test_lru_is_as_by_stack_distance(trace: Trace, capacity: int) -> None:
    assert simulate(trace, capacity, ByAge(trace, plain_age)).hits == lru_curve(trace).hits_at(
        capacity
    )


def best_by_trying_all(trace: Trace, capacity: int) -> int:
    """Hits of the best choice of what to keep after each request."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for blocks in blocks_of(trace):
        after: dict[frozenset[int], int] = {}
        for kept, hits in states.items():
            there = [block in kept for block in blocks]
            now = hits + (there.index(False) if False in there else len(there))
            pool = sorted(kept.union(blocks))
            for chosen in itertools.combinations(pool, min(capacity, len(pool))):
                state = frozenset(chosen)
                after[state] = max(after.get(state, 0), now)
        states = after
    return max(states.values())


@settings(deadline=None, max_examples=60)
@given(traces(requests_max=6, length_max=3), st.integers(1, 4))
def test_nothing_is_better_than_the_optimum(trace: Trace, capacity: int) -> None:
    assert simulate(trace, capacity, Optimum(trace)).hits == best_by_trying_all(trace, capacity)


@settings(deadline=None, max_examples=50)
@given(traces(), st.integers(1, 40), st.sampled_from([0.0, 0.2]))
def test_no_order_is_better_than_the_optimum(trace: Trace, capacity: int, slack: float) -> None:
    best = simulate(trace, capacity, Optimum(trace)).hits
    for order in (ByStore(trace), AtRandom(), ByAge(trace, effective_age)):
        assert simulate(trace, capacity, order, slack=slack).hits <= best


class Watched:
    """An order that looks at what the shelf holds when something goes."""

    def __init__(self, trace: Trace, inner: Order) -> None:
        self.inner = inner
        self.parents = np.full(trace.distinct_blocks, -1)
        for blocks in blocks_of(trace):
            self.parents[blocks[1:]] = blocks[:-1]
        self.looks = 0

    def use(self, use: Use) -> None:
        self.inner.use(use)

    def ages(self, resident: np.ndarray) -> Floats:
        held = set(resident.tolist()) | {-1}
        assert all(parent in held for parent in self.parents[resident].tolist())
        self.looks += 1
        return self.inner.ages(resident)


@pytest.mark.parametrize("age", [plain_age, effective_age])
def test_what_is_left_of_a_chain_is_its_head(age: object) -> None:
    trace = conversations(300)
    order = Watched(trace, ByAge(trace, age))  # type: ignore[arg-type]
    assert 0 < simulate(trace, 60, order).hits < lru_curve(trace).hits_at(10**6)
    assert order.looks > 10


def test_a_hit_ends_at_the_first_missing_block() -> None:
    class HeadFirst(ByStore):
        def ages(self, resident: np.ndarray) -> Floats:
            return -resident.astype(float)

    trace = trace_of([[1, 2, 3], [1, 2, 3]])
    done = simulate(trace, 2, HeadFirst(trace))
    assert (done.hits, done.stored) == (0, 4)


def test_fifo_does_not_see_uses() -> None:
    trace = trace_of([[1], [2], [1], [3], [1]])
    assert simulate(trace, 2, ByStore(trace)).hits == 1
    assert simulate(trace, 2, ByAge(trace, plain_age)).hits == 2


def test_young_access_times_are_not_renewed_unless_something_is_stored() -> None:
    def hits(*requests: list[int]) -> int:
        trace = trace_of(requests)  # 10 seconds between two
        order = ByAge(trace, plain_age, touch_interval_seconds=25)
        return simulate(trace, 3, order).hits

    # 1 is touched too early to count, so that it goes before 2.
    assert hits([1], [2], [1], [3], [4], [1]) == 1
    # Storing 9 behind it touches it, so that 2 goes.
    assert hits([1], [2], [1, 9], [3], [1]) == 2
    # Touched late enough.
    assert hits([1], [2], [3], [1], [4], [1]) == 2


def test_reused_is_what_was_touched_after_it_was_stored() -> None:
    seen: list[list[bool]] = []

    def age(age: Floats, reused: np.ndarray, _idle: Floats) -> Floats:
        seen.append(reused.tolist())
        return age

    trace = trace_of([[1, 2, 3], [1, 2, 4], [5]])
    assert simulate(trace, 4, ByAge(trace, age)).hits == 2
    assert seen == [[True, True, False, False, False]]


def test_slack_is_freed_beyond_need() -> None:
    requests = [[i] for i in range(11)] + [[2], [1]]
    assert simulate(trace_of(requests), 10, ByStore(trace_of(requests))).hits == 2
    assert simulate(trace_of(requests), 10, ByStore(trace_of(requests)), slack=0.1).hits == 1
