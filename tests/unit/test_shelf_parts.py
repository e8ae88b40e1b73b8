"""Jobs of a shelf with several roots, whose parts several native engines do."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf import Chunk, EngineClosedError, Shelf, make_key
from kvshelf.disk.keys import make_mask, masked, masked_all
from kvshelf.disk.rendezvous import Rendezvous
from kvshelf.engine import FileStatus, JobResult, Phase
from kvshelf.testing import Blocks
from tests.unit.sites import CONFIG, IDENTITY, Site, key_at

OK, NOT_FOUND, CANCELLED = FileStatus.OK, FileStatus.NOT_FOUND, FileStatus.CANCELLED
RELEASED, FINISHED = Phase.RELEASED, Phase.FINISHED


@pytest.fixture
def site(tmp_path: Path) -> Any:
    made = Site(tmp_path)
    yield made
    assert made.shelf.close()
    assert all(blocks.guards_are_whole() for blocks in made.memory)


@pytest.mark.parametrize("seed", range(6))
def test_random_chunks_of_random_groups(tmp_path: Path, seed: int) -> None:
    """Stored from one memory and loaded into another, in parts, in any order."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(1, 9000, rng.integers(1, 5)).tolist()) for _ in range(2)]
    source = Site(tmp_path, "abc", memory=[Blocks(shape, 64, seed) for shape in shapes])
    target = Site(tmp_path, "cab", memory=[Blocks(shape, 64, seed + 9) for shape in shapes])
    chunks = [
        Chunk(make_key(rng.bytes(32), index % 2), rng.permutation(64)[: rng.integers(1, 9)], 3)
        for index in range(24)
    ]
    assert set(source.statuses("store", chunks)) == {OK}
    parts, wanted = [], [blocks.blocks(range(64)) for blocks in target.memory]
    free = [rng.permutation(64).tolist() for _ in range(2)]
    for index in rng.permutation(24):
        key, ids, first = chunks[index]
        begin = int(rng.integers(len(ids)))
        part = list(ids)[begin : begin + 2]
        into, free[index % 2] = free[index % 2][: len(part)], free[index % 2][len(part) :]
        parts.append(Chunk(key, into, first + begin))
        for a, b in zip(part, into, strict=True):
            wanted[index % 2][b] = source.memory[index % 2].block(int(a))
    report = target.finish("load", parts)[-1]
    assert set(report.statuses) == {OK}
    assert [blocks.blocks(range(64)) for blocks in target.memory] == wanted
    moved = [sum(shapes[int(key[-1])]) * len(ids) for key, ids, _ in parts]
    assert report.payload_bytes == sum(moved)
    for each in (source, target):
        assert each.shelf.close()
        assert all(blocks.guards_are_whole() for blocks in each.memory)


def test_a_lookup_with_runs_is_exact_up_to_the_first_missing_key_of_each_root(
    tmp_path: Path,
) -> None:
    """What comes behind it in that root may be left out; answers go back to where keys were."""
    site = Site(tmp_path, world_size=2)
    a, b = site.keys(30)
    keys = [key for pair in zip(a, b, strict=True) for key in pair]  # turn by turn
    there = {*a[:20], *b[:6], *b[10:]}
    for rank in range(2):
        ranked = Site(tmp_path, rank=rank, world_size=2)
        assert set(ranked.shelf.store([Chunk(key, [0]) for key in there])) == {OK}
        assert ranked.shelf.close()
    site.shelf.submit_lookup(1, keys, [50])
    assert site.shelf.wait([1], FINISHED, 20)
    (report,) = site.shelf.poll()
    truth = [OK if key in there else NOT_FOUND for key in keys]
    ends = {0: 2 * 20, 1: 2 * 6 + 1}  # of each root, the row of its first missing key
    for row, (answer, true) in enumerate(zip(report.statuses, truth, strict=True)):
        is_exact = row <= ends[row % 2] or row >= 50
        assert answer is true or (not is_exact and answer is CANCELLED), row
    assert site.shelf.close()


def test_masked_keys_lie_where_their_own_hash_says(site: Site) -> None:
    a, b = site.keys(10)
    keys, mask = [*a, *b], make_mask("an epoch")
    stored = masked_all(keys, mask)
    assert set(site.shelf.store([Chunk(key, [0]) for key in stored])) == {OK}
    times = [time.time_ns() - i * 10**9 for i in range(len(keys))]
    site.shelf.touch_at(keys, times, always=True, mask=mask)
    assert site.shelf.drain(10)
    for key, time_ns in zip(stored, times, strict=True):
        path = site.roots[site.shelf.root_of(key)] / site.shelf.path_of(key)
        assert abs(path.stat().st_mtime_ns - time_ns) < 10**6
    for job, (asked, used) in enumerate(((keys, mask), (stored, b""), (keys, b""))):
        site.shelf.submit_lookup(job, asked, (), used)
        assert site.shelf.wait([job], FINISHED, 10)
        (report,) = site.shelf.poll()
        assert set(report.statuses) == ({NOT_FOUND} if job == 2 else {OK})


def test_a_share_is_not_routed_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = site.keys(10)
    mask = make_mask("an epoch")
    stored = [masked(key, mask) for key in (*a, *b)]
    assert set(site.shelf.store([Chunk(key, [0]) for key in stored])) == {OK}
    shares = site.shelf.shares(stored, [20])
    asked = {share.root: [masked(key, mask) for key in share.keys] for share in shares}

    def routed(*_: Any) -> None:
        raise AssertionError("routed again")

    monkeypatch.setattr(Rendezvous, "of_keys", routed)
    monkeypatch.setattr(Rendezvous, "of_key", routed)
    for share in shares:
        site.shelf.submit_lookup(share.root, asked[share.root], share.runs, mask, share.root)
    assert site.shelf.wait([0, 1], FINISHED, 10)
    assert [set(report.statuses) for report in site.shelf.poll()] == [{OK}, {OK}]


def test_a_transfer_says_which_root_has_which_chunks(site: Site) -> None:
    a, b = site.keys(3)
    chunks = [Chunk(key, [0]) for key in (a[0], *b, a[1], a[2])]
    for job, kind in enumerate(("store", "load")):
        routes = getattr(site.shelf, f"submit_{kind}")(job, chunks)
        assert dict(routes) == {0: [0, 4, 5], 1: [1, 2, 3]}
        assert site.shelf.wait([job], FINISHED, 20)
        site.shelf.poll()


BAD: dict[str, Callable[[bytes], Chunk]] = {
    "a short key": lambda _: Chunk(b"k" * 11, [1]),
    "a long key": lambda _: Chunk(b"k" * 129, [1]),
    "no blocks": lambda key: Chunk(key, []),
    "a block too many": lambda key: Chunk(key, [1, 64]),
    "a negative block": lambda key: Chunk(key, np.array([1, -1], dtype=np.int32)),
    "a negative first block": lambda key: Chunk(key, [1], -1),
    "a group without memory": lambda key: Chunk(make_key(key[:-4], 1), [1]),
}


@pytest.mark.parametrize("kind", ["store", "load"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_chunk_of_one_root_queues_nothing_in_any(site: Site, kind: str, what: str) -> None:
    a, b = site.keys(2)
    good = [Chunk(key, [1]) for key in (a[0], b[0])]
    for bad in (BAD[what](a[1]), BAD[what](b[1])):
        with pytest.raises(ValueError, match=r"."):
            getattr(site.shelf, f"submit_{kind}")(1, [*good, bad])
    with pytest.raises(ValueError, match="at least one"):
        getattr(site.shelf, f"submit_{kind}")(1, [])
    assert site.shelf.drain(5) and site.shelf.poll() == []
    assert site.shelf.lookup([a[0], b[0]]) == [NOT_FOUND, NOT_FOUND]


def test_a_chunk_of_too_many_pieces_queues_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, piece_bytes=4096)
    blocks = Blocks((8192,), 8)
    roots = [tmp_path / "a", tmp_path / "b"]
    with Shelf(roots, IDENTITY, groups=[blocks.describe()], config=config) as shelf:
        a, b = (next(k for k in map(key_at, range(99)) if shelf.root_of(k) == r) for r in (0, 1))
        with pytest.raises(ValueError, match="448"):
            shelf.submit_store(1, [Chunk(a, [0]), Chunk(b, [1] * 225)])
        assert shelf.drain(5) and shelf.lookup([a, b]) == [NOT_FOUND, NOT_FOUND]


def test_a_bad_lookup_or_touch_is_refused(site: Site) -> None:
    good = [key for of_root in site.keys(2) for key in of_root]
    for keys, runs, mask in (
        ([], (), b""),
        ([*good, b"k" * 11], (), b""),
        ([*good, b"k" * 129], (), b""),
        (good, (0,), b""),
        (good, (2, 3), b""),
        (good, (), b"x"),
    ):
        with pytest.raises(ValueError, match=r"."):
            site.shelf.submit_lookup(1, keys, runs, mask)
    for times in ([1] * 3, [1, 1, 1, 0]):
        with pytest.raises(ValueError, match="times_ns"):
            site.shelf.touch_at(good, times)
    assert site.shelf.drain(5) and site.shelf.poll() == []


def test_a_closed_shelf_says_so(site: Site) -> None:
    assert site.shelf.close() and site.shelf.close()
    keys = [key for of_root in site.keys(2) for key in of_root]
    calls: list[Callable[[], None]] = [
        lambda: site.shelf.submit_store(1, [Chunk(key, [1]) for key in keys]),
        lambda: site.shelf.submit_load(1, [Chunk(key, [1]) for key in keys]),
        lambda: site.shelf.submit_lookup(1, keys),
        lambda: site.shelf.submit_probe(1, keys, 0),
        lambda: site.shelf.submit_ping(1, 1),
        lambda: site.shelf.touch(keys),
        lambda: site.shelf.touch_at(keys, [1] * 4),
    ]
    for call in calls:
        with pytest.raises(EngineClosedError):
            call()
    assert site.shelf.poll() == [] and site.shelf.drain(0)
    assert site.shelf.wait([1], FINISHED, 0)


def test_close_reports_on_every_job(site: Site) -> None:
    keys = [key for of_root in site.keys(8) for key in of_root]
    chunks = [Chunk(key, [i]) for i, key in enumerate(keys)]
    site.shelf.submit_store(1, chunks)
    site.shelf.submit_load(2, chunks)
    site.shelf.submit_lookup(3, keys)
    site.shelf.submit_probe(4, keys, 4096)
    assert site.shelf.close(20)
    reports = site.shelf.poll()
    assert sorted(each.job_id for each in reports if each.phase is FINISHED) == [1, 2, 3, 4]
    assert all(len(report.statuses) == 16 for report in reports)
    stored = next(r for r in reports if (r.job_id, r.phase) == (1, FINISHED)).statuses
    fresh = Site(site.roots[0].parent)
    assert fresh.shelf.lookup(keys) == [OK if each is OK else NOT_FOUND for each in stored]
    assert fresh.shelf.close()


def test_many_jobs_from_several_threads(site: Site) -> None:
    """Each thread stores, looks up and loads its own chunks; one more collects the reports."""
    shelf, blocks = site.shelf, site.memory[0]
    wanted = blocks.blocks(range(32))
    reports, failures = list[JobResult](), list[BaseException]()
    done = threading.Event()

    def work(thread: int) -> None:
        try:
            mine = range(8 * thread, 8 * thread + 8)
            for turn in range(12):
                keys, job = [key_at(100 * turn + i) for i in mine], 1000 * thread + 3 * turn
                shelf.submit_store(job, [Chunk(k, [i]) for k, i in zip(keys, mine, strict=True)])
                assert shelf.wait([job], FINISHED, 20)
                blocks.clear([32 + i for i in mine])
                chunks = [Chunk(key, [32 + i]) for key, i in zip(keys, mine, strict=True)]
                shelf.submit_lookup(job + 1, keys)
                shelf.submit_load(job + 2, chunks)
                shelf.touch(keys)
                assert shelf.wait([job + 1, job + 2], FINISHED, 20)
                assert blocks.blocks([32 + i for i in mine]) == [wanted[i] for i in mine]
        except BaseException as error:  # a thread's failure must fail the test
            failures.append(error)

    def collect() -> None:
        while not done.is_set():
            reports.extend(shelf.poll())
            time.sleep(0.001)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    collector = threading.Thread(target=collect)
    for each in (*workers, collector):
        each.start()
    for each in workers:
        each.join()
    done.set()
    collector.join()
    reports.extend(shelf.poll())
    if failures:
        raise failures[0]
    assert all(report.statuses == (OK,) * 8 for report in reports)
    seen = [(report.job_id, report.phase) for report in reports]
    jobs = [1000 * i + 3 * turn for i in range(4) for turn in range(12)]
    finished = {(job + k, FINISHED) for job in jobs for k in range(3)}
    assert set(seen) == finished | {(job, RELEASED) for job in jobs} and len(seen) == len(set(seen))
    assert all(seen.index((j, RELEASED)) < seen.index((j, FINISHED)) for j in jobs)
