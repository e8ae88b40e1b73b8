"""Calls that may hang in the kernel, made so that their caller does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from kvshelf.disk.threads import start

T = TypeVar("T")
# Name of the threads that make such calls.
CALL_THREAD = "kvshelf-call"


class NoAnswerError(Exception):
    """A call has not ended in time. No TimeoutError: that is what ETIMEDOUT becomes, an answer."""


def _keep(_: object) -> None:
    """Nothing to undo."""


def within(seconds: float, work: Callable[[], T], undo: Callable[[T], None] = _keep) -> T:
    """What ``work`` returns or raises, if it ends within so long.

    It runs in a thread of its own. A system call on a mount whose server is gone can be left, but
    not ended: then the thread stays until the server answers, and does not keep the process.

    Args:
        undo: called in that thread with what ``work`` returned too late.

    Raises:
        NoAnswerError: it has not ended.
        ResourceError: no thread is to be had.
    """
    call = _Call(work, undo)
    start(threading.Thread(target=call.run, name=CALL_THREAD, daemon=True))
    return call.wait(seconds)


class _Call(Generic[T]):
    def __init__(self, work: Callable[[], T], undo: Callable[[T], None]) -> None:
        self._work, self._undo = work, undo
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._is_left = False

    def run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # for the thread that waits
            self._error = error
        with self._lock:
            self._ended.set()
        if self._is_left and self._results:
            self._undo(self._results[0])

    def wait(self, seconds: float) -> T:
        try:
            self._ended.wait(seconds)
        finally:  # also if a signal ends the wait
            with self._lock:
                self._is_left = not self._ended.is_set()
        if self._is_left:
            raise NoAnswerError(f"no answer within {seconds:g} s")
        if self._error is not None:
            raise self._error
        return self._results[0]
