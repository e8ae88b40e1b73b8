"""The simulation against a real shelf."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvshelf.errors import ConfigError
from kvshelf.plan import replay as module
from kvshelf.plan.lru import lru_curve
from kvshelf.plan.replay import ReplayError, replay
from kvshelf.shelf import Shelf
from tests.plan.traces import conversations

TRACE = conversations(150)


def test_a_real_shelf_hits_as_the_stack_distance_says(tmp_path: Path) -> None:
    done = replay(TRACE, tmp_path / "shelf", 40)
    assert done.hits == done.simulated_hits == lru_curve(TRACE).hits_at(40) > 100
    assert len(list((tmp_path / "shelf").rglob("*.kv"))) == 40
    assert (done.requests, done.capacity_blocks) == (150, 40)


@pytest.mark.parametrize("interval", [0.0, 95.0])
def test_kvshelfs_order_is_as_simulated(tmp_path: Path, interval: float) -> None:
    done = replay(TRACE, tmp_path, 40, policy="kvshelf", touch_interval_seconds=interval)
    assert done.hits == done.simulated_hits > 100


def test_a_shelf_that_evicts_in_another_order_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class YoungestFirst(module._Player):
        def _evict(self, capacity_blocks: int, now_ns: int) -> None:
            self._age = lambda age, *_: -age
            super()._evict(capacity_blocks, now_ns)

    monkeypatch.setattr(module, "_Player", YoungestFirst)
    done = replay(TRACE, tmp_path, 40)
    assert done.hits < done.simulated_hits


def test_wrong_bytes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Shelf.load

    def load(self: Shelf, chunks: list) -> list:
        return real(self, [chunk._replace(key=chunks[0].key) for chunk in chunks])

    monkeypatch.setattr(Shelf, "load", load)
    with pytest.raises(ReplayError, match="brought other bytes"):
        replay(TRACE, tmp_path, 40)


def test_a_directory_with_anything_in_it_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "kvshelf.json").write_text('{"kvshelf": 1}')
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    for place in (tmp_path, tmp_path / "kvshelf.json", tmp_path / "link"):
        with pytest.raises(ConfigError, match="absent or empty"):
            replay(TRACE, place, 40)
    with pytest.raises(ConfigError, match="parent directory must exist"):
        replay(TRACE, tmp_path / "no" / "where", 40)
    assert sorted(tmp_path.rglob("*")) == before


def test_foreign_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = module._Player._store

    def store(self: module._Player, keys: list, blocks: list) -> None:
        real(self, keys, blocks)
        if not made and keys:
            folder = (tmp_path / self._shelf.path_of(keys[0])).parent
            made.append(folder / "notes.kv")
            made[0].write_text("mine")
            made.append(folder / f"{'000'.ljust(64, 'f')}-g0.kv")
            made[1].symlink_to(made[0])
            for path in made:  # the oldest there are
                os.utime(path, (1, 1), follow_symlinks=False)

    monkeypatch.setattr(module._Player, "_store", store)
    replay(TRACE, tmp_path, 5)
    assert made[0].read_text() == "mine" and made[1].is_symlink()
