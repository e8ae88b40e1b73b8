"""A shelf over two roots, of which one fails in every way: the other loads and stores rightly."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, Phase, Shelf, make_key

from .mount import FaultyMount, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

OK, NOT_FOUND, IO_ERROR = FileStatus.OK, FileStatus.NOT_FOUND, FileStatus.IO_ERROR
TIMED_OUT, DROPPED = FileStatus.TIMED_OUT, FileStatus.DROPPED
COUNT = 32
KEYS = [make_key(bytes([i]) * 32, 0) for i in range(COUNT)]
NEW = [make_key(bytes([100 + i]) * 32, 0) for i in range(COUNT)]
CONFIG = EngineConfig(
    io_threads=4,
    load_only_threads=2,
    lookup_threads=4,
    load_timeout_seconds=1.0,
    store_queue_seconds=1.0,
    store_timeout_seconds=1.0,
    lookup_timeout_seconds=0.5,
)


class Site:
    """Two roots, the second on the mount; ``COUNT`` chunks are stored, half of memory is free."""

    def __init__(self, folder: Path, mount: FaultyMount) -> None:
        self.mount = mount
        name = f"root-{time.time_ns()}"
        self.bad_files = mount.source / name  # what the mount shows, behind its back
        self.roots = [folder / "good", mount.path / name]
        self.blocks = np.random.default_rng(1).integers(0, 255, (2 * COUNT, 8192), dtype=np.uint8)
        self.shelf = Shelf.of_arrays(
            self.roots, Identity({"model": "m"}), self.blocks, config=CONFIG
        )
        self.is_good = [self.shelf.root_of(key) == 0 for key in KEYS]
        assert 5 < sum(self.is_good) < COUNT - 5
        assert set(self.store(KEYS)) == {OK}

    def store(self, keys: list[Any]) -> list[FileStatus]:
        return self.shelf.store([Chunk(key, [i]) for i, key in enumerate(keys)])

    def load(self) -> list[FileStatus]:
        """Every chunk into the free half; what is OK is right, and nothing else was written."""
        self.blocks[COUNT:] = 0
        statuses = self.shelf.load([Chunk(key, [COUNT + i]) for i, key in enumerate(KEYS)])
        for i, status in enumerate(statuses):
            if status is OK:
                assert (self.blocks[COUNT + i] == self.blocks[i]).all()
        return statuses

    def heal(self) -> None:
        """Without the fault everything is as before, with the same shelf."""
        self.mount.thaw()
        self.mount.set()
        deadline = time.monotonic() + 20
        while set(self.store(KEYS)) | set(self.load()) | set(self.shelf.lookup(KEYS)) != {OK}:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def site(tmp_path: Path, mount: FaultyMount) -> Iterator[Site]:
    mount.set()
    made = Site(tmp_path, mount)
    yield made
    mount.thaw()
    mount.set()
    made.shelf.close()


def set_faults(**faults: Any) -> Callable[[Site], None]:
    return lambda site: site.mount.set(**faults)


def empty(site: Site) -> None:
    """As after an unmount: an empty directory, which may be written to."""
    for entry in site.bad_files.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def remove(site: Site) -> None:
    shutil.rmtree(site.bad_files)


READ_ONLY = dict.fromkeys(("create", "write", "mkdir", "rename", "unlink", "utimens"), "EROFS")
FAILURES: dict[str, tuple[Callable[[Site], None], set[FileStatus], set[FileStatus]]] = {
    # name: how, what loads and what stores of the bad root's chunks give
    "reads fail": (set_faults(read="EIO", open="EIO"), {IO_ERROR}, {OK, IO_ERROR}),
    "everything fails": (
        set_faults(**dict.fromkeys(("read", "open", "stat", "create", "mkdir"), "EIO")),
        {IO_ERROR},
        {IO_ERROR},
    ),
    "stale handles": (
        set_faults(open="ESTALE", stat="ESTALE"),
        {IO_ERROR, NOT_FOUND},
        {OK, IO_ERROR},
    ),
    "reads hang": (set_faults(stall_read_s=60), {TIMED_OUT}, {OK}),
    "all hangs": (lambda site: site.mount.freeze(), {TIMED_OUT}, {TIMED_OUT, DROPPED}),
    "emptied": (empty, {NOT_FOUND}, {OK}),
    "gone": (remove, {NOT_FOUND}, {IO_ERROR}),
    "read-only": (set_faults(**READ_ONLY), {OK}, {IO_ERROR}),
    "full": (set_faults(write="ENOSPC", create="ENOSPC"), {OK}, {IO_ERROR}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_other_roots_chunks_are_loaded_and_stored(site: Site, failure: str) -> None:
    fail, of_loads, of_stores = FAILURES[failure]
    fail(site)
    loaded, stored = site.load(), site.store(NEW)
    for statuses, keys, allowed in ((loaded, KEYS, of_loads), (stored, NEW, of_stores)):
        for key, status in zip(keys, statuses, strict=True):
            assert status in ({OK} if site.shelf.root_of(key) == 0 else allowed)
    good = [key for key, is_good in zip(KEYS, site.is_good, strict=True) if is_good]
    assert site.shelf.lookup(good) == [OK] * len(good)
    if failure != "gone":  # the directory that the shelf has open is no more
        site.heal()


def test_a_root_that_hangs_takes_no_thread_from_the_other(site: Site) -> None:
    """Its threads hang, all of them; the other's loads are done while its own still wait."""
    site.mount.freeze()
    shares = {share.root: share for share in site.shelf.shares(KEYS)}
    jobs = {}
    for job in range(20):
        for root in (1, 0):
            chunks = [Chunk(KEYS[row], [COUNT + row]) for row in shares[root].rows]
            jobs[root, job] = 2 * job + root
            site.shelf.submit_load(jobs[root, job], chunks)
    good = [jobs[0, job] for job in range(20)]
    assert site.shelf.wait(good, Phase.FINISHED, 10)
    reports = {report.job_id: report for report in site.shelf.poll()}
    assert all(set(reports[job].statuses) == {OK} for job in good)
    bad = [jobs[1, job] for job in range(20)]
    assert site.shelf.wait(bad, Phase.FINISHED, 10)  # by their deadline
    reports |= {report.job_id: report for report in site.shelf.poll()}
    assert all(OK not in reports[job].statuses for job in bad)
    # Some must have been under way when the others were done, or this shows nothing.
    assert max(reports[j].seconds for j in bad) > max(reports[j].seconds for j in good)
    site.heal()


def test_closing_does_not_wait_for_a_root_that_hangs(site: Site) -> None:
    site.mount.freeze()
    site.shelf.submit_load(1, [Chunk(key, [COUNT + i]) for i, key in enumerate(KEYS)])
    start = time.monotonic()
    # What no thread has begun is cancelled, and holds nobody up.
    while site.shelf.stats_of(1).queued_loads == site.is_good.count(False):
        assert time.monotonic() - start < 10
        time.sleep(0.001)
    start = time.monotonic()
    assert not site.shelf.close(timeout_seconds=0.3)
    assert time.monotonic() - start < 10  # its deadline, and not the storage's
    (report,) = site.shelf.poll()
    assert len(report.statuses) == COUNT


def test_a_root_that_is_unmounted_under_the_shelf(tmp_path: Path) -> None:
    """umount -l: the shelf keeps the old file system, a new one finds an empty directory."""
    mount = FaultyMount(tmp_path / "m")
    try:
        site = Site(tmp_path, mount)
        subprocess.run(["umount", "-l", str(mount.path)], check=True, timeout=20)
        site.roots[1].mkdir()
        with Shelf(site.roots, Identity({"model": "m"})) as another:
            found = another.lookup(KEYS)
            assert found == [OK if is_good else NOT_FOUND for is_good in site.is_good]
        statuses = site.load()
        assert all(s is OK for s, is_good in zip(statuses, site.is_good, strict=True) if is_good)
        site.shelf.close()
    finally:
        mount.close()


def test_a_root_that_is_mounted_anew_is_used_again(tmp_path: Path) -> None:
    """The FUSE client of the storage was started anew, under an engine that goes on."""
    mount = FaultyMount(tmp_path / "m")
    try:
        site = Site(tmp_path, mount)
        mount.close()
        statuses = site.load()
        assert all((s is OK) == is_good for s, is_good in zip(statuses, site.is_good, strict=True))
        mount = site.mount = FaultyMount(tmp_path / "m")
        site.heal()
        site.shelf.close()
    finally:
        mount.close()
