"""Exact LRU by stack distance, against a brute-force one."""

from __future__ import annotations

from hypothesis import given, settings

from kvshelf.plan.lru import lru_curve
from kvshelf.plan.trace import Trace
from tests.plan.traces import brute_force_lru, conversations, trace_of, traces


@settings(deadline=None, max_examples=200)
@given(traces())
def test_every_capacity_is_as_by_brute_force(trace: Trace) -> None:
    curve = lru_curve(trace)
    for capacity in range(trace.distinct_blocks + 2):
        assert curve.hits_at(capacity) == brute_force_lru(trace, capacity)


def test_a_longer_trace() -> None:
    trace = conversations(400)
    curve = lru_curve(trace)
    for capacity in (1, 7, 40, 100, trace.distinct_blocks):
        assert curve.hits_at(capacity) == brute_force_lru(trace, capacity)


def test_a_shelf_for_all_hits_all_but_the_first_use() -> None:
    trace = trace_of([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]])
    assert lru_curve(trace).hits_at(10**9) == 2 + 3
    assert lru_curve(trace).hits_at(0) == lru_curve(trace).hits_at(-1) == 0


def test_the_tail_of_a_prefix_goes_first() -> None:
    trace = trace_of([[1, 2, 3], [1, 2, 3]])
    assert lru_curve(trace).hits.tolist() == [0, 1, 2, 3]


def test_requests_without_whole_blocks() -> None:
    trace = trace_of([[], [1], [], [1], []])
    assert lru_curve(trace).hits.tolist() == [0, 1]
    assert lru_curve(trace_of([[], []])).hits.tolist() == [0]
