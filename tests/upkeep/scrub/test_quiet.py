"""Nobody sees that a file was read: neither its access time nor the page cache tells."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.upkeep.scrub.mount import look_at_mount
from kvshelf.upkeep.scrub.verify import STEP_BYTES
from tests.upkeep.scrub.shelves import chunks, fill, scrubbed

PAST_NS = (time.time_ns() // 10**9 - 3600) * 10**9


@pytest.fixture(params=["strictatime", "relatime", "noatime"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A shelf of eight chunks on a file system that is mounted with the option."""
    path = tmp_path / "mount"
    path.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(path)]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=20)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        fill(path / "shelf")
        for chunk in chunks(path / "shelf"):
            os.utime(chunk, ns=(PAST_NS, chunk.stat().st_mtime_ns))
        yield path / "shelf"
    finally:
        subprocess.run(["umount", str(path)], check=True, timeout=20)


def times(root: Path) -> list[tuple[int, int]]:
    return [(path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in chunks(root)]


def facts(root: Path) -> tuple[bool, bool]:
    descriptor = os.open(root, os.O_RDONLY)
    mount = look_at_mount(descriptor)
    os.close(descriptor)
    return mount.reads_mark, mount.quiet_reads_mark


def test_access_times_stay(mounted: Path) -> None:
    before = times(mounted)
    run = scrubbed(mounted)[1]
    assert run.totals.files == 8 and run.totals.findings == {}
    assert times(mounted) == before
    marks, quiet_marks = facts(mounted)
    chunks(mounted)[0].read_bytes()
    # What anybody else would have changed, and the scrub knows it.
    assert (times(mounted) != before) == marks and not quiet_marks


def test_where_the_file_system_marks_all_the_same_the_time_is_put_back(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does, whose servers know no O_NOATIME."""
    marks, _ = facts(mounted)
    monkeypatch.setattr(os, "O_NOATIME", 0)
    assert facts(mounted) == (marks, marks)
    before = times(mounted)
    assert scrubbed(mounted)[1].totals.files == 8
    assert times(mounted) == before


def test_another_users_file_is_not_marked(mounted: Path) -> None:
    """Only an owner may use O_NOATIME: then nothing is read, unless the mount keeps no times."""
    if os.geteuid() != 0:
        pytest.skip("to be another user needs root")
    marks, _ = facts(mounted)
    for path in [mounted, *mounted.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o644)
    before = times(mounted)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(mounted)
            os.setgroups([])
            os.setuid(65_534)
            findings, run = scrubbed(Path())
            kinds = sorted(str(finding.kind) for finding in findings)
            os.write(writer, f"{run.totals.files} {kinds}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        assert answer.read() == f"8 {['unreadable'] * 8 if marks else []}"
    assert os.waitpid(child, 0)[1] == 0
    assert times(mounted) == before


def cached(path: Path) -> list[bool]:
    """Whether each page of a file is in the page cache: mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * (size // 4096))()
    with path.open("rb") as file:
        where = ctypes.c_void_p(
            libc.mmap(
                None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0
            )
        )
        assert libc.mincore(where, ctypes.c_size_t(size), pages) == 0
        libc.munmap(where, ctypes.c_size_t(size))
    return [bool(page & 1) for page in pages]


def drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("direct", [True, False])
def test_the_page_cache_stays(shelf: Path, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", 0)
    hot, *cold = chunks(shelf)
    for path in cold:
        drop(path)
    hot.read_bytes()
    if any(any(cached(path)) for path in cold) or not all(cached(hot)):
        pytest.skip("the page cache of this file system cannot be told to drop a file")
    run = scrubbed(shelf)[1]
    assert run.totals.files == 8 and run.totals.bytes == 8 * 16_384
    assert all(cached(hot)) and not any(any(cached(path)) for path in cold)


def test_a_file_larger_than_a_step_is_verified_whole(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from kvshelf import *; from tests.upkeep.scrub.shelves import *;"
        f"blocks = np.random.default_rng(1).random((2, {STEP_BYTES // 8 + 100}));"
        "shelf = Shelf.of_arrays(sys.argv[1], IDENTITY, blocks);"
        "print(shelf.store([Chunk(key(1), [0, 1])]), shelf.close())"
    )
    root = tmp_path / "shelf"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, timeout=60)
    [path] = chunks(root)
    run = scrubbed(root)[1]
    assert run.totals.findings == {} and run.totals.bytes == path.stat().st_size > 2 * STEP_BYTES
    with path.open("r+b") as file:
        file.seek(4096 + 2 * STEP_BYTES + 5)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    assert [str(kind) for kind in scrubbed(root)[1].totals.findings] == ["corrupt"]
