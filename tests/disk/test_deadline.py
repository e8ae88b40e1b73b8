"""Calls that are left when they take too long."""

from __future__ import annotations

import threading

import pytest

from kvshelf.disk.deadline import NoAnswerError, within


def test_what_the_call_says_is_passed_on() -> None:
    assert within(20, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(20, lambda: 1 // 0)


def test_an_errno_that_says_timed_out_is_an_answer() -> None:
    def fail() -> None:
        raise OSError(110, "Connection timed out")

    with pytest.raises(TimeoutError):
        within(20, fail)


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_that_comes_too_late_is_undone(fails: bool) -> None:
    answers, undone = threading.Event(), []

    def work() -> int:
        answers.wait(60)
        return 1 // 0 if fails else 7

    with pytest.raises(NoAnswerError, match=r"no answer within 0\.05 s"):
        within(0.05, work, undone.append)
    [thread] = [each for each in threading.enumerate() if each.name == "kvshelf-call"]
    assert thread.daemon and not undone
    answers.set()
    thread.join(20)
    assert undone == ([] if fails else [7])


def test_what_comes_in_time_is_not_undone() -> None:
    undone: list[int] = []
    assert within(20, lambda: 7, undone.append) == 7
    assert not undone
