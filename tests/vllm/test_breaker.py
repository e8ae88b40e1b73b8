"""The circuit breaker: when storage is left alone, and when it is asked again."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from kvshelf.breaker import Breaker, State


def opened(faults: int = 3) -> Breaker:
    breaker = Breaker(faults=faults, retry_seconds=2.0)
    for _ in range(faults):
        breaker.fault("no answer", 10.0)
    return breaker


def test_it_opens_after_so_many_faults_and_says_why() -> None:
    breaker = Breaker(faults=3, retry_seconds=2.0)
    for _ in range(2):
        breaker.fault("no answer", 10.0)
    assert breaker.state is State.CLOSED and breaker.admits("r", 10.0)
    breaker.fault("EIO", 10.0)
    assert breaker.state is State.OPEN and not breaker.admits("r", 99.0)
    assert [(c.state, c.cause) for c in breaker.take_changes()] == [(State.OPEN, "EIO")]
    assert breaker.take_changes() == []


def test_faults_among_many_successes_do_not_open_it() -> None:
    breaker = Breaker(faults=3, retry_seconds=2.0)
    for _ in range(100):
        for _ in range(3):
            breaker.success(1.0)
        breaker.fault("EIO", 1.0)
    assert breaker.state is State.CLOSED


def test_storage_that_fails_every_other_time_opens_it() -> None:
    breaker = Breaker(faults=3, retry_seconds=2.0)
    for _ in range(3):
        breaker.success(1.0)
        breaker.fault("EIO", 1.0)
    assert breaker.state is State.OPEN


def test_successes_of_before_do_not_keep_it_closed() -> None:
    breaker = Breaker(faults=3, retry_seconds=2.0)
    for _ in range(1000):
        breaker.success(1.0)
    for _ in range(3):
        breaker.fault("no answer", 2.0)
    assert breaker.state is State.OPEN


def test_it_is_due_after_a_while_and_later_if_a_probe_is_not_answered() -> None:
    breaker = opened()
    assert not breaker.is_due(11.9) and breaker.is_due(12.0)
    breaker.not_answered(12.0)
    assert not breaker.is_due(13.9) and breaker.is_due(14.0)


def test_one_request_tries_and_closes_it() -> None:
    breaker = opened()
    breaker.answered()
    assert breaker.state is State.TRYING
    assert breaker.admits("one", 12.0) and breaker.admits("one", 12.5)
    assert not breaker.admits("two", 12.5)
    breaker.success(13.0)
    assert breaker.state is State.CLOSED and breaker.admits("two", 13.0)
    assert [c.open_seconds for c in breaker.take_changes()][-1] == 3.0


def test_a_trial_that_fails_opens_it_at_once() -> None:
    breaker = opened()
    breaker.answered()
    assert breaker.admits("one", 12.0)
    breaker.fault("no answer", 12.5)
    assert breaker.state is State.OPEN and not breaker.is_due(14.4) and breaker.is_due(14.5)


def test_another_request_tries_if_the_first_had_nothing_to_do() -> None:
    breaker = opened()
    breaker.answered()
    assert breaker.admits("one", 12.0)
    assert breaker.admits("two", 14.0) and not breaker.admits("one", 14.5)


def test_what_was_under_way_when_it_opened_changes_nothing() -> None:
    breaker = opened()
    breaker.success(10.5)
    breaker.fault("EIO", 11.9)
    assert breaker.state is State.OPEN and breaker.is_due(12.0)


def test_old_faults_do_not_open_it_again() -> None:
    breaker = opened()
    breaker.answered()
    breaker.success(12.0)
    breaker.fault("EIO", 13.0)
    breaker.fault("EIO", 13.0)
    assert breaker.state is State.CLOSED
