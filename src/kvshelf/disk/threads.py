"""Starts threads, and says in one way that none is to be had."""

from __future__ import annotations

import threading

from kvshelf.errors import ResourceError

NO_THREAD = (
    "no thread can be made: the limit of processes is reached (ulimit -u, pids.max of the "
    "container, TasksMax of the systemd unit), or its stack finds no memory (ulimit -v)"
)


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        ResourceError: the system gives none (pthread_create(3), EAGAIN).
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceError(NO_THREAD) from error
