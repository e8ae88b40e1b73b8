"""Processes with the library of FaultyCalls preloaded, which run what they are given."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from tests.harness.faulty_calls import FaultyCalls, library

Result = TypeVar("Result")


@functools.cache
def calls_of_process() -> FaultyCalls:
    """The rules of this process, which is one of a pool's."""
    with tempfile.TemporaryDirectory(prefix="kvshelf-calls-") as folder:
        calls = FaultyCalls(Path(folder) / "control")
        calls.attach()  # mapped: nobody else needs its name
    return calls


@contextlib.contextmanager
def preloaded_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end with the context. Started anew, as fork keeps no library out."""
    spawn = multiprocessing.get_context("spawn")
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library())
    try:
        with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
            # All start now: the environment is taken at the start of each.
            wait([pool.submit(os.getpid) for _ in range(processes)])
            yield pool
    finally:
        del os.environ["LD_PRELOAD"]
        if before is not None:
            os.environ["LD_PRELOAD"] = before


def results_of(
    pool: ProcessPoolExecutor, work: Callable[..., Result], items: Iterable[Any], *more: Any
) -> Iterator[Result]:
    """Results as they come; few are under way at a time. A process that dies raises."""
    left = iter(items)
    begun: set[Future[Result]] = set()
    while True:
        begun |= {
            pool.submit(work, item, *more) for item in itertools.islice(left, 16 - len(begun))
        }
        if not begun:
            return
        done, begun = wait(begun, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()
