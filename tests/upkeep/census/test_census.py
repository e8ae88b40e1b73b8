"""Totals from samples: right within what they say of themselves, and exact in the end."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kvshelf.disk.layout import chunk_path
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from kvshelf.upkeep.census.census import Census, summary
from kvshelf.upkeep.census.estimate import Estimate, age_bucket, age_of, percentiles, total
from kvshelf.upkeep.census.watch import Watch

ONE, TWO = Identity({"model": "one"}), Identity({"model": "two"})
HOUR = 3600.0


def put(root: Path, folder: str, number: int, *, rank: int = 0, size: int = 8192) -> Path:
    """A sparse chunk file under the name of a hash."""
    key = hashlib.sha256(str(number).encode()).digest() + bytes(4)
    path = root / chunk_path(folder, rank, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 chunk files of one namespace, two of another."""
    root = open_root(tmp_path_factory.mktemp("census") / "shelf")
    for identity in (ONE, TWO):
        open_namespace(root, identity)
    for number in range(2500):
        put(root, ONE.folder, number, size=4096 * (2 + number % 5))
    for number in range(500):
        put(root, ONE.folder, number, rank=1)
    for number in range(2):
        put(root, TWO.folder, number)
    return root


def test_the_whole_is_exact(big: Path) -> None:
    census = Census(big)
    assert not census.exact and census.seen == 0
    census.refine(60)
    assert census.exact and census.seen == census.folders
    [(one, ranks), (two, others)] = census.namespaces()
    assert (one, two) == (ONE.folder, TWO.folder)
    assert [sample.chunks for sample in ranks] == [Estimate(2500), Estimate(500)]
    assert ranks[0].bytes == Estimate(500 * 4096 * (2 + 3 + 4 + 5 + 6))
    assert summary(others).chunks == Estimate(2) and summary(others).bytes == Estimate(16_384)


def test_a_sample_says_how_wrong_it_may_be(big: Path) -> None:
    """95 of 100 intervals hold the truth; the seeds are fixed, and less than 52 were bad luck."""
    right = Counter[str]()
    for seed in range(60):
        census = Census(big, seed=seed)
        while census.seen < 150:
            census.refine(0)
        found = summary(census.ranks[:1])
        assert 0 < found.chunks.error < 1500
        right["chunks"] += abs(found.chunks.value - 2500) <= found.chunks.error
        right["bytes"] += abs(found.bytes.value - 40_960_000) <= found.bytes.error
    assert right["chunks"] >= 52 and right["bytes"] >= 52


def test_the_error_shrinks_to_nothing(big: Path) -> None:
    census, errors = Census(big, seed=1), []
    for folders in (50, 500, 2000, census.folders):
        while census.seen < folders:
            census.refine(0)
        errors.append(summary(census.ranks[:2]).chunks.error)
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0 < errors[-2]


@pytest.mark.parametrize("mean", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("seen", [1, 5, 29, 100])
def test_few_folders_are_not_believed_too_much(seen: int, mean: float) -> None:
    """Folders as hashes fill them; few of them often look alike."""
    rng, right = np.random.default_rng(int(seen * mean * 100)), 0
    files = round(4096 * mean)
    for _ in range(200):
        counts = rng.multinomial(files, [1 / 4096] * 4096)
        found = total(rng.choice(counts, seen, replace=False).tolist(), 4096)
        right += abs(found.value - files) <= found.error
    assert right >= 180


def test_the_error_is_that_of_the_textbook() -> None:
    """Half of 4,000 folders, of mean and variance 1: 1.96 x 4000 x sqrt(1 / 2000 x 1 / 2)."""
    assert total([0, 2] * 1000, 4000).error == pytest.approx(123.96, rel=1e-3)
    assert total([0, 2] * 1000, 10**9).error == pytest.approx(1.96 * 10**9 / 2000**0.5, rel=1e-3)


def test_nothing_seen_is_nothing_known() -> None:
    assert total([], 7).error == float("inf") and total([], 0) == Estimate(0.0)


def test_ages_are_percentiles_of_all(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    now = time.time()
    for number in range(100):
        path = put(root, ONE.folder, number)
        os.utime(path, (now - HOUR * (number + 1), now - 100 * HOUR * (number + 1)))
    census = Census(root)
    census.refine(60)
    found = summary(census.ranks)
    assert found.used == pytest.approx([10 * HOUR, 50 * HOUR, 90 * HOUR], rel=0.1)
    assert found.stored == pytest.approx([1000 * HOUR, 5000 * HOUR, 9000 * HOUR], rel=0.1)


def test_a_file_of_a_sample_stands_for_as_many_as_it_should() -> None:
    young, old = {age_bucket(10): 1}, {age_bucket(1000): 1}
    assert percentiles([(young, 100.0), (old, 1.0)], [0.5]) == pytest.approx([10], rel=0.1)
    assert percentiles([(young, 1.0), (old, 100.0)], [0.5]) == pytest.approx([1000], rel=0.1)
    assert percentiles([], [0.5, 0.9]) == [None, None]
    assert age_of(age_bucket(-5.0)) == 0


def test_what_is_no_chunk_is_not_counted(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    path = put(root, ONE.folder, 1)
    path.with_name("notes.txt").write_text("mine")
    path.with_name("link-g0.kv").symlink_to(path)
    path.with_name("odd.kv").write_text("")  # no name that an engine or an evictor takes
    path.with_name(f"fff{path.name[3:]}").write_text("")
    (root / "outside").mkdir()
    (root / ONE.folder / "r1").symlink_to(root / ONE.folder / "r0")
    (path.parent.parent / "fff").symlink_to(path.parent)
    census = Census(root)
    census.refine(60)
    assert summary(census.ranks).chunks == Estimate(1) and len(census.ranks) == 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_watch_counts_what_comes_and_goes(tmp_path: Path) -> None:
    root, clock = open_root(tmp_path / "shelf"), Clock()
    paths = [put(root, ONE.folder, number) for number in range(20)]
    watch = Watch(root, clock=clock)
    first = watch.look()
    assert first.chunks == Estimate(20) and first.stored_per_second is None and first.share == 1
    for path in paths[:6]:
        path.unlink()
    for number in range(100, 110):
        put(root, TWO.folder, number, rank=3)  # a new namespace
    clock.now += 2
    second = watch.look()
    assert second.stored_per_second == Estimate(5.0) and second.evicted_per_second == Estimate(3.0)
    assert second.chunks == Estimate(24) and second.bytes == Estimate(24 * 8192)
    clock.now += 2
    assert watch.look().stored_per_second == Estimate(0.0)


def test_a_watch_of_a_big_shelf_looks_into_a_part(big: Path) -> None:

    class Ticking(Clock):
        def __call__(self) -> float:
            self.now += 0.001
            return self.now

    right = Counter[str]()
    for seed in range(4):
        clock = Ticking()
        watch = Watch(big, seed=seed, clock=clock, look_seconds=0.5)
        first = watch.look()
        assert 0.05 < first.share < 0.2  # 500 looks at the clock
        right["chunks"] += abs(first.chunks.value - 3002) <= first.chunks.error
        made = [put(big, TWO.folder, 10_000 + number) for number in range(200)]
        clock.now = 100.0
        watch._at = 0.0
        second = watch.look()
        assert second.share == first.share and second.evicted_per_second is not None
        assert second.stored_per_second is not None and second.evicted_per_second.value == 0
        difference = abs(second.stored_per_second.value - 2)
        right["rate"] += difference <= second.stored_per_second.error
        for path in made:
            path.unlink()
    assert right["chunks"] >= 3 and right["rate"] >= 3
