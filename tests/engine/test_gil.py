"""The native engine's beginning and end on storage that hangs: other Python threads go on."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvshelf.engine import EngineConfig
from kvshelf.engine.native import NativeEngine
from tests.harness.faulty_mount import FaultyMount, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
CONFIG = EngineConfig(lookup_threads=2, lookup_timeout_seconds=5.0)
# Of some 200 a second on an idle machine; of a thread that must wait for the GIL, two or three.
TICKS_MIN = 20


def make(mount: FaultyMount) -> NativeEngine:
    return NativeEngine(mount.path, [], CONFIG, namespace=bytes(32), rank=0)


@contextmanager
def ticking() -> Iterator[list[float]]:
    """The times at which another Python thread ran."""
    ticks = [time.monotonic()]
    is_over = threading.Event()

    def tick() -> None:
        while not is_over.wait(0.005):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    yield ticks
    is_over.set()
    thread.join()
    ticks.append(time.monotonic())


@contextmanager
def hanging(mount: FaultyMount, seconds: float) -> Iterator[None]:
    """The mount answers again after that time, also if no Python thread of this process runs."""
    mount.freeze()
    command = f"sleep {seconds}; kill -CONT {mount._process.pid}"
    with subprocess.Popen(["sh", "-c", command]):
        yield


def test_other_threads_run_while_an_engine_is_opened(mount: FaultyMount) -> None:
    with hanging(mount, 1.5), ticking() as ticks:
        engine = make(mount)
    assert ticks[-1] - ticks[0] > 1.0
    assert len(ticks) > TICKS_MIN
    assert engine.close(5)


def test_other_threads_run_while_an_engine_is_destroyed(mount: FaultyMount) -> None:
    engine = make(mount)
    with hanging(mount, 2.5):
        engine.submit_lookup(1, ["ns/r0/abc/none-g0.kv"])
        while engine.stats().queued_lookups > 0:
            time.sleep(0.001)
        with ticking() as ticks:
            del engine
    assert ticks[-1] - ticks[0] > 0.8  # it waits for a second
    assert len(ticks) > TICKS_MIN
