"""Calls that may hang in the kernel, made so that their caller does not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from typing import TypeVar

from kvshelf.disk.threads import start

T = TypeVar("T")
# Name of the threads that make such calls.
CALL_THREAD = "kvshelf-call"


class NoAnswerError(Exception):
    """A call has not ended in time. No TimeoutError: that is what ETIMEDOUT becomes, an answer."""


def within(seconds: float, work: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
    """What ``work`` returns or raises, if it ends within so long.

    It runs in a thread of its own. A system call on a mount whose server is gone can be left, but
    not ended: then the thread stays until the server answers, and does not keep the process.

    Args:
        undo: called in that thread with what ``work`` returned too late.

    Raises:
        NoAnswerError: it has not ended.
        ResourceError: no thread is to be had.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # for the thread that waits
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
            return
        try:
            future.set_result(result)
        except InvalidStateError:  # nobody waits any more
            if undo is not None:
                undo(result)

    start(threading.Thread(target=run, name=CALL_THREAD, daemon=True))
    is_left = False
    try:
        wait([future], seconds)
    finally:  # also if a signal ends the wait
        is_left = future.cancel()
    if is_left:
        raise NoAnswerError(f"no answer within {seconds:g} s")
    return future.result()
