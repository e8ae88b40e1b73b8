"""Which ages go, from a histogram: against a sorted list of all chunks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvshelf.upkeep.evict.cut import EffectiveAge, choose_cuts
from kvshelf.upkeep.evict.limits import Amount
from kvshelf.upkeep.evict.native import (
    AGE_BUCKETS,
    BUCKET_EDGES_SECONDS,
    NEVER_NS,
    Buckets,
    _native,
)
from kvshelf.upkeep.evict.policy import effective_age

NOW = 1_900_000_000 * 10**9
SIZE = 4096


def histogram(ages_ns: list[tuple[int, bool, int]], coverage: float = 1.0) -> Buckets:
    """Of (namespace, reused, age in ns), made ten seconds ago."""
    counts: dict[tuple[int, bool, int], int] = {}
    for space, reused, age in ages_ns:
        row = (space, reused, _native.age_bucket(age - 10 * 10**9))
        counts[row] = counts.get(row, 0) + 1
    rows = np.array([[*row, count] for row, count in counts.items()], dtype=np.int64).reshape(-1, 4)
    return Buckets(
        folders=("a", "b"),
        namespace=rows[:, 0],
        reused=rows[:, 1] != 0,
        bucket=rows[:, 2],
        files=rows[:, 3],
        bytes=rows[:, 3] * SIZE,
        last_use_ns=np.array([NOW - 10**9, NOW - 5 * 10**9]),
        time_ns=NOW - 10 * 10**9,
        coverage=coverage,
    )


def split(
    chunks: list[tuple[int, bool, int]], cuts: np.ndarray
) -> tuple[list[tuple[int, bool, int]], list[tuple[int, bool, int]]]:
    """The chunks that surely and those that maybe go."""
    sure = [c for c in chunks if NOW - c[2] < cuts[c[0], int(c[1]), 0]]
    maybe = [c for c in chunks if cuts[c[0], int(c[1]), 0] <= NOW - c[2] < cuts[c[0], int(c[1]), 1]]
    return sure, maybe


def favour_reused(age: np.ndarray, reused: np.ndarray, idle: np.ndarray) -> np.ndarray:
    return age * np.where(reused, 0.25, 1.0) + idle


def flat(age: np.ndarray, reused: np.ndarray, idle: np.ndarray) -> np.ndarray:
    """Steps: many different ages are equal."""
    return np.floor(age / 1000) * 1000


ages = st.integers(11 * 10**9, 30 * 365 * 86_400 * 10**9) | st.integers(11 * 10**9, 99 * 10**9)
chunk_lists = st.lists(st.tuples(st.integers(0, 1), st.booleans(), ages), min_size=1, max_size=60)
policies = st.sampled_from([effective_age, favour_reused, flat])


@given(chunk_lists, st.integers(1, 60), st.booleans(), policies)
def test_the_cut_encloses_the_need(
    chunks: list[tuple[int, bool, int]], count: int, by_files: bool, policy: EffectiveAge
) -> None:
    need = Amount(count, 0) if by_files else Amount(0, count * SIZE)
    cuts = choose_cuts(histogram(chunks), need, policy, now_ns=NOW)
    sure, maybe = split(chunks, cuts)
    assert len(sure) <= count
    assert len(sure) + len(maybe) >= min(count, len(chunks))

    def effective(those: list[tuple[int, bool, int]]) -> np.ndarray:
        space, reused, age = (np.array(column) for column in zip(*those, strict=True))
        return policy(age * 1e-9, reused, np.where(space == 0, 1.0, 5.0))

    # All that go before others are older, as the policy counts.
    for first, later in (
        (sure, maybe),
        (sure + maybe, [c for c in chunks if c not in sure + maybe]),
    ):
        if first and later:
            assert effective(first).min() >= effective(later).max() - 1e-3


def test_only_the_namespace_that_is_asked_for() -> None:
    chunks = [(space, False, (20 + i) * 10**9) for space in (0, 1) for i in range(50)]
    cuts = choose_cuts(histogram(chunks), Amount(10, 0), effective_age, now_ns=NOW, folder="b")
    assert (cuts[0] == NEVER_NS).all()
    sure, maybe = split(chunks, cuts)
    assert len(sure) <= 10 <= len(sure) + len(maybe)


def test_no_need_and_no_chunks_cut_nothing() -> None:
    chunks = [(0, False, 20 * 10**9)]
    assert (choose_cuts(histogram(chunks), Amount(), effective_age, now_ns=NOW) == NEVER_NS).all()
    cuts = choose_cuts(histogram([]), Amount(1, 1), effective_age, now_ns=NOW)
    assert (cuts == NEVER_NS).all()


def test_what_was_used_since_the_histogram_never_goes() -> None:
    chunks = [(0, False, (20 + i) * 10**9) for i in range(5)]
    cuts = choose_cuts(histogram(chunks), Amount(99, 0), effective_age, now_ns=NOW)
    assert cuts.max() <= NOW - 10 * 10**9
    ahead = choose_cuts(
        histogram([(0, False, 0)]), Amount(1, 0), effective_age, now_ns=NOW, future_seconds=60
    )
    assert ahead[0, 0, 1] > NOW


def test_a_sample_is_trusted_for_less_than_it_says() -> None:
    chunks = [(0, False, (20 + i) * 10**9) for i in range(1000)]
    half = histogram(chunks[::2], coverage=0.5)
    cuts = choose_cuts(half, Amount(100, 0), effective_age, now_ns=NOW)
    sure, maybe = split(chunks, cuts)
    assert not maybe and 80 <= len(sure) <= 92


def test_buckets_are_in_order_and_narrow() -> None:
    assert (np.diff(BUCKET_EDGES_SECONDS) > 0).all()
    assert BUCKET_EDGES_SECONDS[0] == 0 and BUCKET_EDGES_SECONDS[-1] > 20 * 365 * 86_400
    widths = np.diff(BUCKET_EDGES_SECONDS) / np.maximum(BUCKET_EDGES_SECONDS[:-1], 0.2)
    assert widths.max() <= 1 / 128 + 1e-9
    for bucket in range(AGE_BUCKETS):
        begin = _native.age_bucket_begin(bucket)
        assert _native.age_bucket(begin) == bucket
        if bucket:
            assert _native.age_bucket(begin - 1) == bucket - 1
    assert _native.age_bucket(-5) == 0 and _native.age_bucket(2**62) == AGE_BUCKETS - 1
