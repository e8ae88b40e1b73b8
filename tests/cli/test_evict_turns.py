"""``kvshelf evict`` beside others: one evicts at a time, and all can read what went."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvshelf.cli.main import main
from kvshelf.upkeep.evict.journal import RemovedReader
from kvshelf.upkeep.evict.lease import Lease, open_lease
from tests.cli.test_evict import Daemon, shelf_of
from tests.cli.usage import refused
from tests.upkeep.evict.shelves import CHUNK_BYTES

LIMIT = ("--shelf-limit", str(80 * CHUNK_BYTES), "--low-water", "100")


def hold(lease: Lease, until: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        lease.tick()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_daemon_waits_until_it_is_its_turn(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, 100)
    lease = open_lease(tmp_path, lease_seconds=2.0)
    assert lease.tick()
    reader = RemovedReader(tmp_path, shelf.folders[0])
    reader.read()
    daemon = Daemon(tmp_path, *LIMIT, "--every", "0.05", "--lease", "2")
    try:
        began = time.monotonic()
        hold(lease, lambda: time.monotonic() > began + 5)  # it has started long ago
        assert lease.is_held and shelf.gone() == set()
        lease.release()
        deadline = time.monotonic() + 30
        while len(shelf.gone()) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert shelf.gone() == shelf.oldest(20)
        keys: set[bytes] = set()
        while len(keys) < 20:
            keys.update(reader.read())
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert keys == {chunk.key for chunk in shelf.chunks if chunk.path in shelf.gone()}
    finally:
        daemon.process.terminate()
        daemon.process.communicate(timeout=30)
    assert lease.tick() or open_lease(tmp_path, lease_seconds=2.0).tick()  # it has left it


def test_once_does_not_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf = shelf_of(tmp_path, 100)
    lease = open_lease(tmp_path, lease_seconds=60.0)
    assert lease.tick()
    assert main(["evict", str(tmp_path), *LIMIT, "--once"]) == 0
    assert shelf.gone() == shelf.oldest(20)
    assert lease.is_held
    capsys.readouterr()


def test_a_lease_out_of_range_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf_of(tmp_path, 1)
    said = refused(["evict", str(tmp_path), "--once", "--lease", "0"], capsys)
    assert "--lease: '0': allowed is a duration from 1s to 1h" in said
