"""When an evictor looks again: arithmetic, without files."""

from __future__ import annotations

import pytest

from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.refresh import RefreshTimes, Use

BEFORE, AFTER = Use(1000, 10), Use(1500, 14)


def after_a_look(cost_seconds: float) -> RefreshTimes:
    """The last one began when BEFORE was used and ended at 100 s."""
    times = RefreshTimes()
    times.begin(BEFORE)
    times.end(100.0, cost_seconds, is_done=True)
    return times


def test_the_first_look_is_due() -> None:
    assert RefreshTimes().is_due(0.0, BEFORE, is_urgent=False)


@pytest.mark.parametrize(
    ("cost_seconds", "use", "is_urgent", "pause"),
    [
        (0.05, BEFORE, False, 19.95),
        (0.05, BEFORE, True, 19.95),  # nothing was stored
        (1.0, AFTER, False, 9.0),
        (1.0, AFTER, True, 1.0),
        (0.001, AFTER, True, 0.5),
        (0.001, BEFORE, False, 0.5),
        (100.0, BEFORE, False, 30.0),
        (100.0, AFTER, True, 30.0),
    ],
)
def test_looks_take_a_share_of_the_time(
    cost_seconds: float, use: Use, is_urgent: bool, pause: float
) -> None:
    times = after_a_look(cost_seconds)
    assert not times.is_due(100.0 + pause - 0.01, use, is_urgent)
    assert times.is_due(100.0 + pause + 0.01, use, is_urgent)
    times.now()
    assert times.is_due(100.0, use, is_urgent)


def test_one_expensive_look_does_not_make_the_next_one_late() -> None:
    """What others remove from the file system hides its growth: no look is urgent then."""
    times = after_a_look(0.01)
    times.begin(BEFORE)
    times.end(200.0, 1.0, is_done=True)  # a second evictor has removed from every folder
    assert times.is_due(200.51, AFTER, is_urgent=False)
    times.begin(BEFORE)
    times.end(300.0, 1.0, is_done=True)  # what is always expensive takes its share of the time
    assert not times.is_due(308.9, AFTER, is_urgent=False)
    assert times.is_due(309.1, AFTER, is_urgent=False)


def test_a_look_in_parts_costs_their_sum_and_counts_from_its_beginning() -> None:
    times = RefreshTimes()
    times.begin(BEFORE)
    times.end(99.0, 0.4, is_done=False)
    assert times.is_due(99.0, BEFORE, is_urgent=False)
    times.begin(AFTER)  # what came meanwhile may be where it had been already
    times.end(100.0, 0.6, is_done=True)
    assert not times.is_due(108.9, AFTER, is_urgent=False)
    assert times.is_due(109.1, AFTER, is_urgent=False)
    assert times.grown_bytes(AFTER, 1) == 500


def test_growth_is_the_larger_of_bytes_and_files() -> None:
    times = after_a_look(1.0)
    assert times.grown_bytes(AFTER, mean_bytes=100) == 500
    assert times.grown_bytes(AFTER, mean_bytes=200) == 800
    assert times.grown_bytes(Use(1500, 0), mean_bytes=200) == 500  # inodes are not counted
    assert times.grown_bytes(Use(900, 9), mean_bytes=200) == 0
    assert RefreshTimes().grown_bytes(AFTER, mean_bytes=200) == 0  # nothing to compare with


def test_a_volume_that_tells_nothing_may_have_changed() -> None:
    """An object-store mount says 0 of 0: a limit of bytes must not wait for that to move."""
    silent = Use.of(Volume(0, 0, bytes_unknown="0 of 0", inodes_unknown="0 of 0"))
    times = RefreshTimes()
    times.begin(silent)
    times.end(100.0, 1.0, is_done=True)
    assert not times.is_due(108.9, silent, is_urgent=False)
    assert times.is_due(109.1, silent, is_urgent=False)
