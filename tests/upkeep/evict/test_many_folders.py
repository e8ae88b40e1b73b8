"""Shelves of many namespaces and ranks: few descriptors, little memory, and never a false idle."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvshelf.disk.root as root_module
import kvshelf.upkeep.evict.spaces as spaces_module
from kvshelf import metrics
from kvshelf.cli.common import Exit
from kvshelf.disk.clock import FileClock
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.exposition import Exposition
from kvshelf.upkeep.evict.limits import Amount, Limits
from kvshelf.upkeep.evict.report import State
from kvshelf.upkeep.evict.series import NAMESPACES_MAX, OTHER, with_own_series
from kvshelf.upkeep.evict.spaces import Spaces
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle

SPACES, RANKS = 60, 8


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ShelfMaker:
    """A chunk in each of 480 rank folders."""
    names = [f"model-{i}" for i in range(SPACES)]
    shelf = ShelfMaker(tmp_path_factory.mktemp("wide") / "shelf", *names)
    for i in range(SPACES * RANKS):
        shelf.add(10_000 - i, name_space=i % SPACES, rank=i // SPACES)
    return shelf


@pytest.mark.parametrize("threads", [4, 64])
def test_a_shelf_of_more_ranks_than_descriptors_is_known_and_evicted(
    wide: ShelfMaker, threads: int
) -> None:
    there = len(wide.chunks) - len(wide.gone())
    keep = there - 80
    command = ["prlimit", "--nofile=64:64", sys.executable, "-m", "kvshelf.cli", "evict"]
    command += [str(wide.root), "--once", "--json", "--low-water", "100", "--shelf-limit"]
    command += [str(keep * CHUNK_BYTES), "--threads", str(threads)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr, told["state"]) == (0, "", "idle")
    assert told["removed_files"] == 80 and len(wide.gone()) == len(wide.chunks) - keep
    assert sum(each["files"] for each in told["namespaces"].values()) == keep


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    """Takes all descriptors but some, once a number of these is appended."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    yield taken
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for descriptor in taken:
        os.close(descriptor)


def take_all_but(free: int, taken: list[int]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        while True:
            taken.append(os.open("/", os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
    for _ in range(free):
        os.close(taken.pop())


@pytest.mark.parametrize("free", range(7))
def test_without_descriptors_it_is_an_error_and_never_idle(
    tmp_path: Path, descriptors: list[int], free: int
) -> None:
    """Whatever the number that is left, what is said is true."""
    shelf = ShelfMaker(tmp_path, "one", "two")
    for i in range(20):
        shelf.add(10_000 - i, name_space=i % 2, rank=i % 4)
    evictor = Evictor(tmp_path, Limits(shelf_bytes=5 * CHUNK_BYTES, low_percent=100))
    take_all_but(free, descriptors)
    try:
        report = settle(evictor)
    except OSError as error:
        assert error.errno == errno.EMFILE
    else:
        if report.state is State.IDLE:
            assert len(shelf.gone()) == 15
        else:
            assert report.state is State.BLIND
            assert report.unseen or report.unread
    if free < 2:  # the root and a namespace must be open at once
        assert not shelf.gone()
    while descriptors:
        os.close(descriptors.pop())
    evictor._refresh_times.now()
    evictor._spaces._mtime = -1.0
    assert settle(evictor).state is State.IDLE and len(shelf.gone()) == 15


def test_a_blind_evictor_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvshelf.cli.main import main
    from kvshelf.upkeep.evict.native import Sweep

    shelf = ShelfMaker(tmp_path)
    shelf.add(10)
    monkeypatch.setattr(Sweep, "unseen", lambda _: 3)
    assert main(["evict", str(tmp_path), "--once", "--json"]) == Exit.FINDINGS
    told = capsys.readouterr()
    assert json.loads(told.out)["state"] == "blind"
    assert "3 folders could not be looked into, so their chunks do not count" in told.err
    exposition = Exposition()
    exposition.add(Evictor(tmp_path, Limits(shelf_bytes=10**12)).step(seconds_max=10))
    assert f'{metrics.EVICT_STATE}{{root=""}} 4.0\n' in exposition.text()


def test_memory_a_rank_folder(tmp_path: Path) -> None:
    """In a process of its own: 2,000 rank folders cost less than 2 kB each."""
    names = [f"model-{i}" for i in range(1000)]
    shelf = ShelfMaker(tmp_path, *names)
    for i in range(2000):
        shelf.add(10_000 - i, name_space=i % 1000, rank=i // 1000)
    code = (
        "import os, sys\n"
        "from kvshelf.upkeep.evict.evictor import Evictor\n"
        "from kvshelf.upkeep.evict.limits import Limits\n"
        "def resident():\n"
        "    pages = int(open('/proc/self/statm').read().split()[1])\n"
        "    return pages * os.sysconf('SC_PAGE_SIZE')\n"
        "evictor = Evictor(sys.argv[1], Limits(shelf_bytes=10**12))\n"
        "before = resident()\n"
        "report = evictor.step(60)\n"
        "assert report.shelf.files == 2000 and report.state.value == 'idle', report\n"
        "evictor._scan_all = True\n"
        "evictor.step(60)\n"
        "print(resident() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    # Stacks of threads and buffers are beside it, whatever the shelf is.
    assert int(done.stdout) < 2000 * 2048 + (8 << 20)


def test_a_namespace_json_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = ShelfMaker(tmp_path, "one", "two", "three")
    read: list[str] = []
    real = spaces_module.namespace_entry

    def entry(root: Path, name: str) -> object:
        read.append(name)
        return real(root, name)

    monkeypatch.setattr(spaces_module, "namespace_entry", entry)
    spaces = Spaces(tmp_path, FileClock(tmp_path))
    assert spaces.list() == sorted(shelf.folders) and len(read) == 3
    spaces._mtime = -1.0  # list again
    assert spaces.list() == sorted(shelf.folders) and len(read) == 3
    (tmp_path / shelf.folders[1] / "namespace.json").write_text("{}")
    other = open_namespace(tmp_path, Identity({"model": "four"})).name
    spaces._mtime = -1.0
    assert spaces.list() == sorted({shelf.folders[0], shelf.folders[2], other})
    assert read[3:] == sorted([shelf.folders[1], other])
    # What is unsound is read at each listing, until somebody mends it.
    spaces._mtime = -1.0
    spaces.list()
    assert read[5:] == [shelf.folders[1]] and shelf.folders[1] in spaces.foreign


def amounts(count: int) -> dict[str, Amount]:
    return {f"model-{i:05}-0123456789ab": Amount(1, i) for i in range(count)}


def test_few_namespaces_have_a_series_each() -> None:
    usage = amounts(NAMESPACES_MAX)
    assert with_own_series(usage) == usage


def test_of_many_namespaces_the_largest_have_a_series_and_the_sum_is_right() -> None:
    usage = amounts(12_500)
    shown = with_own_series(usage)
    assert len(shown) == NAMESPACES_MAX + 1
    assert set(shown) - {OTHER} == set(sorted(usage)[-NAMESPACES_MAX:])
    assert sum(each.bytes for each in shown.values()) == sum(range(12_500))
    assert sum(each.files for each in shown.values()) == 12_500


def test_a_namespace_keeps_its_series_while_it_is_there() -> None:
    usage = amounts(500)
    kept = [*sorted(usage)[:60], "gone-0123456789ab", OTHER]
    shown = with_own_series(usage, kept)
    assert set(kept[:60]) < set(shown) and "gone-0123456789ab" not in shown
    assert set(shown) - set(kept) == set(sorted(usage)[-40:])


def test_the_page_of_metrics_is_bounded(wide: ShelfMaker) -> None:
    report = Evictor(wide.root, Limits(shelf_bytes=10**12)).step(seconds_max=30)
    exposition = Exposition()
    object.__setattr__(report, "usage", amounts(5000))
    exposition.add(report)
    lines = exposition.text().splitlines()
    for name in (metrics.SHELF_BYTES, metrics.SHELF_CHUNKS):
        rows = [line for line in lines if line.startswith(f"{name}{{")]
        assert len(rows) == NAMESPACES_MAX + 1
        assert sum('namespace="other"' in row for row in rows) == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_a_namespace_json_that_cannot_be_read_is_told_by_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Our own lack ends the step; what one namespace refuses leaves the others."""
    shelf = ShelfMaker(tmp_path, "one", "two")
    for i in range(20):
        shelf.add(10_000 - i, name_space=i % 2)
    bad = shelf.folders[0]
    real = root_module.read_json

    def read(path: Path | str, *arguments: int) -> object:
        if str(path).startswith(str(tmp_path / bad)):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments)

    monkeypatch.setattr(root_module, "read_json", read)
    evictor = Evictor(tmp_path, Limits(shelf_bytes=10**12))
    if number != errno.EACCES:
        with pytest.raises(OSError, match=os.strerror(number)):
            evictor.step()
        return
    report = settle(evictor)
    assert report.state is State.BLIND and report.unread == (bad,) and report.shelf.files == 10
