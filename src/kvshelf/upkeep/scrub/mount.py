"""What a scrub must know of the mount: its clock, and what reading does to access times."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

from kvshelf.disk.layout import temp_name
from kvshelf.disk.owner import Users
from kvshelf.disk.this_process import this_owner

_PAGE = 4096
_HOUR_NS = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Mount:
    """Facts about the file system of a root.

    Attributes:
        now: its clock in seconds since 1970, as it stamps files; None if it cannot be written to.
        reads_mark: reading a file changes its access time.
        quiet_reads_mark: it does even with O_NOATIME, as on NFS, whose server keeps the times.
    """

    now: float | None
    reads_mark: bool = True
    quiet_reads_mark: bool = False


@contextlib.contextmanager
def temp_file(root: int, mode: int = 0o600) -> Iterator[tuple[int, str]]:
    """A new temp file in the root, open for writing, and its name; removed at the end if it is
    still there."""
    owner = this_owner()
    # A dot in front: the names of the root itself (kvshelf.disk.root).
    name = f".{temp_name(owner, int.from_bytes(os.urandom(4), 'big'))}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(name, flags, mode, dir_fd=root)
    try:
        Users.of(root).give(descriptor, mode)
        yield descriptor, name
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=root)


def look_at_mount(root: int) -> Mount:
    """Find out with a file of a moment; what cannot be found out is taken at its worst."""
    now = None
    try:
        with temp_file(root) as (descriptor, name):
            now = os.fstat(descriptor).st_mtime
            os.write(descriptor, bytes(_PAGE))
            quiet = _read_marks(root, name, os.O_NOATIME)
            return Mount(now, reads_mark=_read_marks(root, name, 0), quiet_reads_mark=quiet)
    except OSError:
        return Mount(now)


def _read_marks(root: int, name: str, flags: int) -> bool:
    """Whether reading a file of ours changes its access time."""
    flags |= os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    # Past the client's cache if that is possible: a server stamps only what it is asked for.
    try:
        descriptor = os.open(name, flags | os.O_DIRECT, dir_fd=root)
    except OSError:
        descriptor = os.open(name, flags, dir_fd=root)
    try:
        seen = os.fstat(descriptor)
        # Older than the modification time: what relatime, too, renews.
        before = seen.st_mtime_ns - _HOUR_NS
        os.utime(descriptor, ns=(before, seen.st_mtime_ns))
        _read_page(descriptor)
    finally:
        os.close(descriptor)
    return os.stat(name, dir_fd=root, follow_symlinks=False).st_atime_ns != before


def _read_page(descriptor: int) -> None:
    with mmap.mmap(-1, _PAGE) as page:  # aligned, as O_DIRECT asks
        os.readv(descriptor, [page])  # Python's preadv is preadv2(2), which some profiles forbid
