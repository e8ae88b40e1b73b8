"""What KvshelfTier tells vLLM beyond the bytes: results, events, log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf import metrics  # noqa: E402
from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.vllm import tier as tier_module  # noqa: E402
from kvshelf.vllm.tier import KvshelfTier  # noqa: E402

from .jobs import key, tier_config, tier_spec  # noqa: E402
from .tiers import ROW_BYTES, Engine, files, moved  # noqa: E402


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def engines(root: Path) -> Iterator[tuple[Engine, Engine]]:
    pair = Engine(root), Engine(root)
    yield pair
    for engine in pair:
        engine.tier.shutdown()


def test_events_and_metrics(root: Path) -> None:
    engine = Engine(root, enable_kv_events=True)
    try:
        engine.run("store", [key(1)], [0])
        (event,) = engine.tier.take_events()
        assert event.keys == [key(1)] and not event.removed
        assert event.medium == KvshelfTier.medium
        stats = engine.tier.get_stats()
        assert not stats.is_empty()
        assert metrics.STORE_BYTES in KvshelfTier.build_metric_definitions({})
    finally:
        engine.tier.shutdown()


@pytest.mark.parametrize("locality", ["LOCAL", "REMOTE", None])
def test_events_say_where_the_storage_is(locality: str | None, root: Path) -> None:
    engine = Engine(root, enable_kv_events=True, locality=locality)
    try:
        engine.run("store", [key(1), key(2)], [0, 1])
        for path in files(root):
            path.unlink()
        assert not engine.run("load", [key(1), key(2)], [2, 3]).success
        events = list(engine.tier.take_events())
        assert [event.removed for event in events] == [False, True]
        for event in events:
            found = getattr(event, "locality", None)
            assert (found and found.value) == locality and found == engine.tier.locality
    finally:
        engine.tier.shutdown()


@pytest.mark.parametrize("place", ["elsewhere", "local", ""])
def test_a_place_that_vllm_does_not_know_is_refused(place: str, root: Path) -> None:
    with pytest.raises(ConfigError, match="LOCAL, REMOTE") as caught:
        Engine(root, locality=place)
    assert caught.value.setting == "locality" and not root.exists()


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[list[str]]:
    handler = Lines()
    tier_module.logger.addHandler(handler)
    yield handler.lines
    tier_module.logger.removeHandler(handler)


@pytest.mark.parametrize("asked", [True, "true", False, "false", None])
@pytest.mark.parametrize("published", [True, False])
def test_events_that_vllm_does_not_publish_are_warned_of(
    asked: Any, published: bool, root: Path, log: list[str]
) -> None:
    spec = tier_spec(replace(tier_config(), enable_kv_cache_events=published))
    engine = Engine(root, spec, enable_kv_events=asked)
    try:
        engine.run("store", [key(1)], [0])
        wanted = asked in (True, "true")
        assert len(list(engine.tier.take_events())) == (wanted and published)
        warned = [line for line in log if "--kv-events-config" in line]
        assert len(warned) == (wanted and not published)
    finally:
        engine.tier.shutdown()


def test_no_events_unless_asked_for(engines: tuple[Engine, Engine]) -> None:
    engines[0].run("store", [key(1)], [0])
    assert not list(engines[0].tier.take_events())


@pytest.mark.parametrize("kind", ["store", "load"])
def test_refusals_are_logged_once_a_minute(
    kind: str, engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    engine, _ = engines

    def refuse(*_: Any) -> None:
        raise RuntimeError("closed")

    monkeypatch.setattr(engine.tier._shelf, f"submit_{kind}", refuse)
    for i in range(20):
        assert not engine.run(kind, [key(i)], [i]).success
    assert len([line for line in log if "closed" in line]) == 1


@pytest.mark.parametrize("kind", ["store", "load"])
def test_a_job_without_chunks_succeeds(kind: str, engines: tuple[Engine, Engine]) -> None:
    engine, _ = engines
    result = engine.run(kind, [], [])
    assert result.success and moved(result) in (0, None)


def test_a_store_that_the_breaker_refuses_is_not_said_to_be_done(
    engines: tuple[Engine, Engine], root: Path
) -> None:
    engine, _ = engines
    engine.run("store", [key(1)], [1])
    breaker = engine.tier.manager._breakers.writing[0]
    now = time.monotonic()
    for _ in range(5):
        breaker.fault("test", now + 3600)
    part, nothing = engine.run("store", [key(1), key(2)], [1, 2]), engine.run("store", [], [])
    assert not part.success and moved(part) in (0, None) and nothing.success
    assert getattr(part, "successful_keys", None) is None
    stats = engine.tier.get_stats()
    assert metrics.STORE_OUTCOMES in repr(stats) and "breaker" in repr(stats)
    assert len(files(root)) == 1
    breaker.answered()
    breaker.success(now)
    assert engine.run("store", [key(1), key(2)], [1, 2]).success and len(files(root)) == 2


def test_a_store_of_which_a_root_refuses_a_part_is_not_said_to_be_done(tmp_path: Path) -> None:
    engine = Engine(tmp_path, shared_storage_path=[str(tmp_path / name) for name in "ab"])
    try:
        manager = engine.tier.manager
        keys = [key(i) for i in range(8)]
        away = [k for k in keys if manager._shelf.root_of(k) == 0]
        assert 0 < len(away) < len(keys)
        for _ in range(5):
            manager._breakers.writing[0].fault("test", time.monotonic() + 3600)
        result = engine.run("store", keys, list(range(8)))
        assert not result.success
        kept = len(keys) - len(away)
        assert moved(result) in (kept * ROW_BYTES, None)
        assert engine.run("store", [k for k in keys if k not in away], list(range(kept))).success
    finally:
        engine.tier.shutdown()
