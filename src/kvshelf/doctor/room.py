"""Room on a mount: what statvfs says, and whether a chunk can be written."""

from __future__ import annotations

import os
from pathlib import Path

from kvshelf.disk.volume import NO_ROOM, Volume, volume_of, why_no_room
from kvshelf.doctor.findings import Finding, fine, note, problem, warning
from kvshelf.text import bytes_text

_NEARLY_FULL_PERCENT = 90
# A large chunk, or several small ones: quotas are kept in steps of some megabytes.
_PROBE_BYTES, _PIECE_BYTES = 8 << 20, 1 << 20


def check_room(root: Path) -> list[Finding]:
    """Free bytes and inodes, as df(1) counts them.

    Raises:
        OSError: the file system does not say.
    """
    volume = volume_of(root)
    return [_bytes(volume), _inodes(volume)]


def _bytes(volume: Volume) -> Finding:
    text = volume.text()
    remedy = "free some, or set a limit so that kvshelf evicts in time"
    if not volume.counts_bytes:
        return note(
            "room",
            f"{text}: limits by percent (evict_percent, --volume-percent) do not work here",
            "limit the shelf by its size: evict_shelf_gb, --shelf-limit",
        )
    if not volume.free_bytes:
        return warning("room", f"no block is left: {text}", remedy)
    if 100 * volume.used_bytes > _NEARLY_FULL_PERCENT * volume.total_bytes:
        return warning("room", text, remedy)
    if volume.doubt:
        return note("room", f"{text}; {volume.doubt}", "set evict_shelf_gb or --shelf-limit")
    return fine("room", text)


def _inodes(volume: Volume) -> Finding:
    if not volume.counts_inodes:
        return fine("inodes", f"not counted by this file system ({volume.inodes_unknown})")
    text = f"{volume.free_inodes:,} of {volume.total_inodes:,} free"
    remedy = "larger chunks (block_size), or a file system with more inodes"
    if not volume.free_inodes:
        return warning("inodes", f"none is left: {text}", remedy)
    if 100 * volume.used_inodes > _NEARLY_FULL_PERCENT * volume.total_inodes:
        return warning("inodes", text, remedy)
    return fine("inodes", text)


def check_write(folder: Path) -> Finding:
    """Whether a chunk can be written: quotas tell it at a write, not in statvfs.

    Raises:
        OSError: it fails for another reason than a lack of room.
    """
    path = folder / "written"
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(_PROBE_BYTES // _PIECE_BYTES):
                file.write(os.urandom(_PIECE_BYTES))
            _sync(file.fileno())
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return no_room(error.errno or 0, folder)
    finally:
        path.unlink(missing_ok=True)
    return fine("write", f"{bytes_text(_PROBE_BYTES)} can be written")


def _sync(descriptor: int) -> None:
    """Quotas of network file systems tell it here; whether syncing works is another check's."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise


def no_room(number: int, folder: Path) -> Finding:
    """Which resource is used up, by the errno of a write and by the numbers of statvfs."""
    try:
        volume = volume_of(folder)
    except OSError as error:
        volume = Volume(0, 0, bytes_unknown=error.strerror or str(error))
    return problem("room", *why_no_room(number, volume, _PROBE_BYTES))
