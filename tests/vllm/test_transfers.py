"""What worker and tier have in common: jobs that are refused, counted, logged and closed alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf import Chunk, EngineConfig, Shelf, metrics  # noqa: E402
from kvshelf.disk.rendezvous import Rendezvous  # noqa: E402
from kvshelf.engine import Phase  # noqa: E402
from kvshelf.vllm.worker.transfers import Transfers  # noqa: E402

from .test_adapter import IDENTITY, key  # noqa: E402

CHUNKS = [Chunk(key(i), range(i, i + 1)) for i in range(3)]
KEYS = {chunk.key for chunk in CHUNKS}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    config = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=1)
    blocks = np.ones((4, 4096), np.uint8)
    with Shelf.of_arrays(tmp_path, IDENTITY, blocks, config=config) as made:
        yield made


@pytest.fixture
def transfers(shelf: Shelf) -> Transfers:
    return Transfers(shelf, logging.getLogger("kvshelf.tests.transfers"))


def finish(shelf: Shelf, transfers: Transfers, job: int) -> list[bytes]:
    assert shelf.wait([job], Phase.FINISHED, 20)
    [result] = [each for each in shelf.poll() if each.phase is Phase.FINISHED]
    return [chunk.key for chunk in transfers.ended(result)]


def test_a_job_is_under_way_until_it_ends(shelf: Shelf, transfers: Transfers) -> None:
    assert transfers.store(1, CHUNKS) and list(transfers.stores) == [1]
    assert finish(shelf, transfers, 1) == [chunk.key for chunk in CHUNKS]
    assert transfers.load(2, CHUNKS) and list(transfers.loads) == [2] and not transfers.stores
    assert finish(shelf, transfers, 2) == [chunk.key for chunk in CHUNKS]
    report = transfers.take_report()
    assert not transfers.loads and report is not None
    assert report.published.keys() == KEYS and [loaded for _, loaded, _ in report.loads] == [3]


def test_a_finished_job_is_not_routed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(io_threads=4, load_only_threads=2, lookup_threads=2)
    blocks, roots = np.ones((16, 4096), np.uint8), [tmp_path / "a", tmp_path / "b"]
    chunks = [Chunk(key(i), range(i, i + 1)) for i in range(16)]
    with Shelf.of_arrays(roots, IDENTITY, blocks, config=config) as shelf:
        transfers = Transfers(shelf, logging.getLogger("kvshelf.tests.transfers"))
        assert {shelf.root_of(chunk.key) for chunk in chunks} == {0, 1}
        assert transfers.store(1, chunks)

        def routed(*_: Any) -> None:
            raise AssertionError("routed again")

        monkeypatch.setattr(Rendezvous, "of_keys", routed)
        monkeypatch.setattr(Rendezvous, "of_key", routed)
        assert len(finish(shelf, transfers, 1)) == 16
        report = transfers.take_report()
    assert report is not None and set(report.outcomes) == {("store", "", 0), ("store", "", 1)}


@pytest.mark.parametrize("kind", ["store", "load"])
def test_what_is_refused_is_counted_each_time_and_logged_once_a_minute(
    kind: str, shelf: Shelf, transfers: Transfers, monkeypatch: Any, caplog: Any
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("closed")

    monkeypatch.setattr(shelf, f"submit_{kind}", refuse)
    begin = getattr(transfers, kind)
    assert not any(begin(job, CHUNKS) for job in range(20))
    assert not transfers.stores and not transfers.loads
    lines = [line for line in caplog.messages if f"submit {kind}" in line]
    assert len(lines) == 1 and "OSError: closed" in lines[0]
    report = transfers.take_report()
    assert report is not None
    if kind == "store":
        assert report.counters[metrics.STORE_OUTCOMES, ("dropped",)] == 60
        assert report.not_stored == KEYS
    else:
        assert report.counters[metrics.LOAD_FAILURES, ("cancelled",)] == 60
        assert report.failed == KEYS and report.loads == [(3, 0, 0.0)] * 20


def test_nothing_to_move_is_no_job_and_no_fault(transfers: Transfers, caplog: Any) -> None:
    assert not transfers.store(1, []) and not transfers.load(2, [])
    report = transfers.take_report()  # the first says the namespace
    assert report is not None and not report.counters and not caplog.messages


def test_stores_that_are_given_up_at_the_end_are_logged(
    shelf: Shelf, transfers: Transfers, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(shelf, "drain", lambda _: False)
    transfers.close(0.1)
    assert ["given up" in line for line in caplog.messages] == [True]
