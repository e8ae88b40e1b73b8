"""A directory mounted again, over FUSE, with the quirks of file systems that people have.

    python -m tests.harness.quirkfs SOURCE MOUNT CONTROL

CONTROL is a JSON file, read again whenever it changes; see ``Quirks`` for what it may hold. Use
``QuirkMount`` of quirk_mount.py in tests. Needs root, /dev/fuse and libfuse 3.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

_TIMES = ("st_atime", "st_mtime", "st_ctime")
_STATS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino", "st_dev", "st_blocks")
_BLOCK = 4096


@dataclass(frozen=True)
class Quirks:
    """
    Attributes:
        errors: operation -> errno's name, or {"errno": name, "path": regular expression that the
            path below the mount must match}. Operations are the methods of ``Served``, and
            "rename_flags" for a rename with flags, "write_gap" for a write that is not at the
            file's end, "write_back" for one before it, "fsyncdir" for that of a folder.
        statvfs: fields of statvfs(3) to replace: {"f_ffree": 2**64 - 1}.
        volume_bytes: a volume of this size, of which live files take their lengths.
        volume_inodes: likewise, of inodes.
        other_bytes: of ``volume_bytes``, taken by others.
        keeps_removed: removed bytes stay taken, as with a snapshot.
        quota_bytes: writes beyond this are EDQUOT; statvfs does not tell.
        time_step_ns: times are rounded down to a multiple.
        clock_offset_seconds: of the file server's clock, ahead of this machine's.
    """

    errors: dict[str, Any] = field(default_factory=dict)
    statvfs: dict[str, int] = field(default_factory=dict)
    volume_bytes: int = 0
    volume_inodes: int = 0
    other_bytes: int = 0
    keeps_removed: bool = False
    quota_bytes: int = 0
    time_step_ns: int = 1
    clock_offset_seconds: float = 0.0

    def error_of(self, operation: str, path: str) -> int:
        rule = self.errors.get(operation)
        if rule is None:
            return 0
        if isinstance(rule, dict):
            if not re.search(rule.get("path", ""), path):
                return 0
            rule = rule["errno"]
        return int(getattr(errno, rule))


class Served(mfusepy.Operations):
    """The file system's calls."""

    use_ns = True

    def __init__(self, source: str, control: str) -> None:
        self._source = source
        self._control = control
        self._read_at = -1
        self._quirks = Quirks()
        self._lock = threading.Lock()
        self._removed_bytes = 0
        self._libc = ctypes.CDLL(None, use_errno=True)

    @property
    def quirks(self) -> Quirks:
        with contextlib.suppress(OSError, ValueError):
            changed = os.stat(self._control).st_mtime_ns
            if changed != self._read_at:
                self._quirks = Quirks(**json.loads(Path(self._control).read_text()))
                self._read_at = changed
        return self._quirks

    def _at(self, path: str, operation: str) -> str:
        error = self.quirks.error_of(operation, path)
        if error:
            raise mfusepy.FuseOSError(error)
        return self._source + path

    # Names

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        place = self._at(path, "getattr")
        found = os.fstat(fh) if fh is not None else os.lstat(place)
        known: dict[str, Any] = {name: getattr(found, name) for name in _STATS}
        step = self.quirks.time_step_ns
        for name in _TIMES:
            known[name] = getattr(found, f"{name}_ns")
        # Nobody can set a change time: that of the source is this machine's.
        known["st_ctime"] += int(1e9 * self.quirks.clock_offset_seconds)
        known |= {name: known[name] // step * step for name in _TIMES}
        return known

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        place = self._at(path, "readdir")
        for name in (".", "..", *os.listdir(place)):
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(os.path.join(place, name))
                # libfuse takes an entry without a number for a removed one.
                yield name, {"st_ino": found.st_ino, "st_mode": found.st_mode}, 0

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path, "readlink"))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path, "mkdir"), mode)
        self._own(path, is_folder=True)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path, "rmdir"))

    def symlink(self, target: str, source: str) -> None:
        os.symlink(source, self._at(target, "symlink"))

    def link(self, target: str, source: str) -> None:
        os.link(self._at(source, "link"), self._source + target)

    def unlink(self, path: str) -> None:
        place = self._at(path, "unlink")
        size = os.lstat(place).st_size
        os.unlink(place)
        if self.quirks.keeps_removed:
            with self._lock:
                self._removed_bytes += size

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old, "rename"), self._source + new)

    def rename_with(self, old: str, new: str, flags: int) -> None:
        place = self._at(old, "rename_flags")
        self._at(old, "rename")
        ends = (-100, os.fsencode(place), -100, os.fsencode(self._source + new))
        if self._libc.renameat2(*ends, flags) != 0:
            raise mfusepy.FuseOSError(ctypes.get_errno())

    # Attributes

    def access(self, path: str, amode: int) -> None:
        self._at(path, "access")

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path, "chmod"), stat.S_IMODE(mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        unset = (1 << 32) - 1
        place = self._at(path, "chown")
        mode = os.lstat(place).st_mode
        os.lchown(place, -1 if uid in (-1, unset) else uid, -1 if gid in (-1, unset) else gid)
        os.chmod(place, stat.S_IMODE(mode))

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        place = self._at(path, "utimens")
        now = self._now_ns()
        found = os.lstat(place)
        wanted = [now if time_ == (1 << 30) - 1 else time_ for time_ in times or (now, now)]
        kept = [found.st_atime_ns, found.st_mtime_ns]
        omitted = (1 << 30) - 2
        ns = tuple(kept[i] if wanted[i] == omitted else wanted[i] for i in (0, 1))
        os.utime(place, ns=(ns[0], ns[1]), follow_symlinks=False)

    def statfs(self, path: str) -> dict[str, int]:
        quirks = self.quirks
        found = os.statvfs(self._at(path, "statfs"))
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")
        values = {name: getattr(found, name) for name in (*names, "f_favail", "f_namemax")}
        if quirks.volume_bytes:
            live_bytes, files = self._usage()
            used = live_bytes + quirks.other_bytes + self._removed_bytes * quirks.keeps_removed
            free = max(0, quirks.volume_bytes - used) // _BLOCK
            values |= {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_bfree": free, "f_bavail": free}
            values["f_blocks"] = quirks.volume_bytes // _BLOCK
            inodes = quirks.volume_inodes or 1_000_000
            values |= {"f_files": inodes, "f_ffree": inodes - files, "f_favail": inodes - files}
        return values | quirks.statvfs

    # Files

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        place = self._at(path, "create")
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._own(path, is_folder=False)
        return handle

    def open(self, path: str, flags: int) -> int:
        place = self._at(path, "open")
        dropped = os.O_APPEND | os.O_DIRECT | os.O_NOATIME
        handle = os.open(place, flags & ~dropped)
        if flags & os.O_TRUNC:
            self._stamp(place)
        return handle

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._at(path, "read")
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        place = self._at(path, "write")
        quirks = self.quirks
        end = os.fstat(fh).st_size
        if offset != end:
            self._at(path, "write_gap")
        if offset < end:
            self._at(path, "write_back")
        grown = max(0, offset + len(data) - end)
        if quirks.quota_bytes and self._usage()[0] + grown > quirks.quota_bytes:
            raise mfusepy.FuseOSError(errno.EDQUOT)
        if quirks.volume_bytes:
            taken = self._usage()[0] + quirks.other_bytes
            taken += self._removed_bytes * quirks.keeps_removed
            if taken + grown > quirks.volume_bytes:
                raise mfusepy.FuseOSError(errno.ENOSPC)
        written = os.pwrite(fh, data, offset)
        if quirks.clock_offset_seconds:
            self._stamp(place)
        return written

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(fh if fh is not None else self._at(path, "truncate"), length)

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> None:
        self._at(path, "fallocate")
        quirks = self.quirks
        if quirks.quota_bytes and self._usage()[0] + size > quirks.quota_bytes:
            raise mfusepy.FuseOSError(errno.EDQUOT)
        os.posix_fallocate(fh, offset, size)

    def flush(self, path: str, fh: int) -> None:
        self._at(path, "flush")

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._at(path, "fsync")

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self._at(path, "fsyncdir")

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    # What the real calls do not do here

    def _now_ns(self) -> int:
        return time.time_ns() + int(1e9 * self.quirks.clock_offset_seconds)

    def _stamp(self, place: str) -> None:
        now = self._now_ns()
        os.utime(place, ns=(now, now), follow_symlinks=False)

    def _own(self, path: str, *, is_folder: bool) -> None:
        """A new entry is its maker's, as a kernel's file system has it."""
        place = self._source + path
        folder = os.stat(os.path.dirname(place))
        uid, gid, _ = mfusepy.fuse_get_context()
        inherits = bool(folder.st_mode & stat.S_ISGID)
        mode = stat.S_IMODE(os.lstat(place).st_mode)
        os.lchown(place, uid, folder.st_gid if inherits else gid)
        os.chmod(place, mode | stat.S_ISGID if inherits and is_folder else mode)
        if self.quirks.clock_offset_seconds:
            self._stamp(place)

    def _usage(self) -> tuple[int, int]:
        """Bytes and files below the source; small trees only."""
        total = files = 0
        for folder, _, names in os.walk(self._source):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
                    files += 1
        return total, files


class Server(mfusepy.FUSE):
    """mfusepy drops the flags of a rename."""

    operations: Served

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        if flags:
            self.operations.rename_with(os.fsdecode(old), os.fsdecode(new), flags)
        else:
            self.operations.rename(os.fsdecode(old), os.fsdecode(new))
        return 0


def main(source: str, mount: str, control: str) -> None:
    os.umask(0)
    Server(
        Served(source, control),
        mount,
        foreground=True,
        allow_other=True,
        default_permissions=True,
        attr_timeout=0,
        entry_timeout=0,
        ac_attr_timeout=0,
        fsname="quirkfs",
        use_ino=True,
        max_threads=8,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
