"""Judges what statvfs(3) says of a file system. Every number of statvfs goes through here.

File systems answer with numbers that cannot be: CephFS with all ones for its free inodes, EFS with
8 EiB, object-store mounts with 0 of 0 or with a petabyte of which nothing is ever used. Such a
number is "not counted", with the reason, and no limit holds by it.

Sources: statvfs(3); df(1) for the percentage and its rounding; the statfs calls of the kernel's
fs/ceph, fs/btrfs and fs/xfs, and of the FUSE file systems that are named beside their numbers.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import Any

from kvshelf.text import bytes_text

# What a write says that finds no room: which resource, only the numbers and the errno tell.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# "Unknown" in 32 and 64 bits, signed and not.
_ALL_ONES = frozenset({2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1})
# More bytes, or inodes, than any volume has: EFS says 8 EiB, mountpoint-s3 more.
_UNLIMITED = 1 << 62
# A mount of this size or above that never has a byte used does not count: s3fs (256 TiB), goofys,
# gcsfuse and rclone (1 PiB). The lesser size holds if no inode is ever used: sshfs (1000 GiB).
_FICTION_BYTES, _FICTION_BYTES_OF_BOTH = 1 << 48, 1 << 39
# JuiceFS without a capacity: 1 PiB, doubled when it is used. It may be a real total as well.
_DOUBTFUL_BYTES = 1 << 50
_UNIT_MAX = 1 << 32
# Of a volume that never counts, and of one that does not count yet: CephFS just after mounting.
ZERO_OF_ZERO = "statvfs says 0 of 0"
_NAMES = (
    "f_bsize",
    "f_frsize",
    "f_blocks",
    "f_bfree",
    "f_bavail",
    "f_files",
    "f_ffree",
    "f_favail",
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A file system, as far as its numbers can be.

    Attributes:
        used_bytes: taken by anybody.
        total_bytes: used and free for us: without blocks that are kept for root, as df(1) has it;
            0 if the file system does not count them.
        used_inodes, total_inodes: likewise.
        size_bytes: of the whole file system, reserved blocks too; 0 if not counted.
        bytes_unknown, inodes_unknown: why they are not counted; "" if they are.
        doubt: why the numbers may not be a real limit; "" if nothing speaks against them.
    """

    used_bytes: int
    total_bytes: int
    used_inodes: int = 0
    total_inodes: int = 0
    size_bytes: int = field(default=0, compare=False)
    bytes_unknown: str = field(default="", compare=False)
    inodes_unknown: str = field(default="", compare=False)
    doubt: str = field(default="", compare=False)

    @classmethod
    def from_statvfs(cls, found: Any) -> Volume:
        # Python reads these unsigned numbers as signed ones.
        numbers = {name: int(getattr(found, name)) % 2**64 for name in _NAMES}
        unit = _unit(numbers["f_frsize"], numbers["f_bsize"])
        blocks = _judge(*(numbers[name] for name in _NAMES[2:5]), unit=unit)
        inodes = _judge(*(numbers[name] for name in _NAMES[5:]), unit=1)
        size = numbers["f_blocks"] * unit
        nothing_used = not blocks.unknown and blocks.used == 0
        if not inodes.unknown and inodes.used == 0:
            # The root folder has one in any file system that counts them.
            text = f"statvfs says that all {inodes.available:,} are free, always"
            inodes = _Count(0, 0, text)
            nothing_used &= size >= _FICTION_BYTES_OF_BOTH
        else:
            nothing_used &= size >= _FICTION_BYTES and bool(inodes.unknown)
        if nothing_used:
            text = f"statvfs says that all of {bytes_text(size)} is free, always"
            blocks = _Count(0, 0, text)
        return cls(
            used_bytes=blocks.used * unit,
            total_bytes=(blocks.used + blocks.available) * unit,
            used_inodes=inodes.used,
            total_inodes=inodes.used + inodes.available,
            size_bytes=0 if blocks.unknown else size,
            bytes_unknown=blocks.unknown,
            inodes_unknown=inodes.unknown,
            doubt="" if blocks.unknown else _doubt(size),
        )

    @property
    def counts_bytes(self) -> bool:
        """Whether the file system says how much room it has."""
        return not self.bytes_unknown

    @property
    def counts_inodes(self) -> bool:
        """Whether it says how many inodes it has."""
        return not self.inodes_unknown

    @property
    def free_bytes(self) -> int:
        """Free for us; 0 if not counted."""
        return self.total_bytes - self.used_bytes

    @property
    def free_inodes(self) -> int:
        """Free for us; 0 if not counted."""
        return self.total_inodes - self.used_inodes

    @property
    def used_percent(self) -> int | None:
        """Of the bytes, as df(1) shows it: rounded up; None if not counted."""
        return _percent(self.used_bytes, self.total_bytes) if self.counts_bytes else None

    @property
    def used_inode_percent(self) -> int | None:
        """Of the inodes, likewise."""
        return _percent(self.used_inodes, self.total_inodes) if self.counts_inodes else None

    def text(self) -> str:
        """Free bytes of the size, and df's percentage, or why nothing is known."""
        if self.bytes_unknown:
            return f"room not counted ({self.bytes_unknown})"
        free, size = bytes_text(self.free_bytes), bytes_text(self.size_bytes or self.total_bytes)
        return f"{free} of {size} free, {self.used_percent}% used"


@dataclass(frozen=True, slots=True)
class _Count:
    """Blocks or inodes that are used and that we may take; or why nobody knows."""

    used: int
    available: int
    unknown: str = ""


def volume_of(path: str | os.PathLike[str] | int) -> Volume:
    """The file system that a path or a descriptor lies on.

    Raises:
        OSError: it does not say.
    """
    return Volume.from_statvfs(os.statvfs(path))


def why_no_room(number: int, volume: Volume, wanted_bytes: int = 1 << 20) -> tuple[str, str]:
    """Which resource is used up, and what to do, for an ENOSPC, EDQUOT or EFBIG of a write.

    Args:
        number: the errno.
        wanted_bytes: that were to be written, at most.
    """
    free = volume.text()
    inodes = f"{volume.free_inodes:,} of {volume.total_inodes:,} inodes free"
    name = errno.errorcode.get(number, str(number))
    if number == errno.EDQUOT:
        return (
            f"the quota of this user, group or directory is used up ({name}); the file system "
            f"itself has {free}",
            "raise the quota, or give kvshelf a limit below it: evict_shelf_gb, --shelf-limit",
        )
    if number == errno.EFBIG:
        return f"a file may not be so large ({name}; {free})", "raise ulimit -f"
    if volume.counts_inodes and volume.free_inodes == 0:
        return (
            f"no inode is left ({name}): {inodes}; {free}",
            "remove files, or use larger chunks (block_size) or a file system with more inodes",
        )
    if volume.counts_bytes and volume.free_bytes < wanted_bytes:
        left = "too few blocks are left" if volume.free_bytes else "no block is left"
        return (
            f"{left} ({name}): {free}",
            "free some, or set a limit so that kvshelf evicts in time",
        )
    return (
        f"no room for what was written ({name}), though statvfs says: {free}",
        "look for a quota or a reserve that statvfs does not show, or free some",
    )


def _unit(fragment: int, block: int) -> int:
    """Bytes of what f_blocks counts; 0 if nothing says it."""
    return next((size for size in (fragment, block) if 0 < size <= _UNIT_MAX), 0)


def _judge(total: int, free: int, available: int, *, unit: int) -> _Count:
    if total == 0 and free == 0:
        return _Count(0, 0, ZERO_OF_ZERO)
    if not unit:
        return _Count(0, 0, "statvfs says that a block has 0 bytes")
    if total in _ALL_ONES or total * unit >= _UNLIMITED:
        return _Count(0, 0, f"statvfs says {total * unit:,} in all, which is no limit")
    if free in _ALL_ONES or free > total:
        return _Count(0, 0, f"statvfs says {_signed(free):,} free of {total:,}")
    if available in _ALL_ONES:
        available = free
    elif available >= 1 << 63:  # negative: more than what is kept for root is taken
        available = 0
    return _Count(total - free, min(available, free))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 1 << 63 else number


def _percent(used: int, total: int) -> int:
    """Of nothing that we may have all is used."""
    return -(-100 * used // total) if total else 100


def _doubt(size: int) -> str:
    if size < _DOUBTFUL_BYTES or size & (size - 1):
        return ""
    return (
        f"{bytes_text(size)} in all is also what object-store mounts (JuiceFS) say that have no "
        "capacity: if so, limits by percent are never reached"
    )
