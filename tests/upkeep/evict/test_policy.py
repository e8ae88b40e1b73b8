"""The order of eviction."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvshelf.upkeep.evict.policy import effective_age

AGES = st.floats(0, 1e9)


def age_of(age: float, reused: bool, idle: float = 0.0) -> float:
    [value] = effective_age(np.array([age]), np.array([reused]), np.array([idle]))
    return float(value)


@given(AGES, AGES, st.booleans(), AGES)
def test_it_does_not_fall_with_age_within_a_class(
    one: float, other: float, reused: bool, idle: float
) -> None:
    low, high = sorted((one, other))
    assert age_of(low, reused, idle) <= age_of(high, reused, idle)


@given(AGES, AGES)
def test_a_chunk_that_was_used_again_stays_longer(age: float, idle: float) -> None:
    assert age_of(age, True, idle) <= age_of(age, False, idle)
    assert age_of(100.0, True) < age_of(99.0, False)


@given(AGES, st.booleans(), st.booleans(), st.floats(0, 1))
def test_an_idle_namespace_goes_before_what_was_used_since(
    idle: float, reused: bool, other_reused: bool, share: float
) -> None:
    """Every chunk of it is at least as old as its idle time."""
    assert age_of(idle, reused, idle) >= age_of(share * idle, other_reused)


def test_arrays_give_an_array() -> None:
    ages = effective_age(
        np.array([1.0, 50.0, 3.0]), np.array([False, True, False]), np.array([0.0, 0.0, 90.0])
    )
    assert ages.shape == (3,) and ages.dtype == np.float64
    assert np.argsort(-ages).tolist() == [2, 1, 0]
