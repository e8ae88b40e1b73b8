"""What a file system does when an engine uses it: asked through the engine's own code.

The extension is imported when first used: the rest of the command line needs none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum

from kvshelf.engine.base import FileStatus

_STATUSES = tuple(FileStatus)


def file_system_magic(path: str | os.PathLike[str]) -> int:
    """The number of a file system's type (statfs(2)).

    Raises:
        OSError: the path is not there.
    """
    from kvshelf.core import native  # noqa: PLC0415

    return int(native.file_system_magic(os.fspath(path)))


class Naming(IntEnum):
    """How a whole file gets its name, best first: the last may replace another process's file."""

    UNKNOWN = 0
    RENAME_NOREPLACE = 1
    LINK = 2
    RENAME = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step of a probe. ``errno`` is 0 unless ``status`` is IO_ERROR."""

    status: FileStatus
    errno: int

    @property
    def ok(self) -> bool:
        return self.status is FileStatus.OK


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the engine's own calls met in a directory (native/include/kvshelf/probe.h).

    Attributes:
        stored: of a chunk. If it failed, no other step was tried.
        stored_again: by a writer that had begun before the chunk was there.
        replaced: whether that writer replaced the file.
        loaded: of the chunk; CORRUPT if its bytes are not those that were stored.
        removed: of the chunk.
        naming: the way by which the chunk got its name.
        rename_error, link_error, allocate_error: errnos of renameat2(2), link(2) and fallocate(2).
        in_order: files must be written from their start to their end.
        direct_error, touch_error: errnos of O_DIRECT and utimensat(2).
        touched_ns: the access time that was set, as the file system keeps it; wanted was
            ``wanted_ns``.
        synced_data, synced_full: of a chunk with these durabilities.
        sync_seconds: what the first of them took.
    """

    stored: Outcome
    stored_again: Outcome
    replaced: bool
    loaded: Outcome
    removed: Outcome
    naming: Naming
    rename_error: int
    link_error: int
    allocate_error: int
    in_order: bool
    direct_error: int
    touch_error: int
    touched_ns: int
    wanted_ns: int
    synced_data: Outcome
    synced_full: Outcome
    sync_seconds: float


def probe(
    directory: str | os.PathLike[str], *, file_mode: int = 0o640, dir_mode: int = 0o2770
) -> ProbeReport:
    """Store, load, touch, sync and remove chunks of 1 MiB as an engine does.

    Leaves a folder without chunks, "probe". Waits for storage. Threads: any.

    Raises:
        OSError: the directory cannot be opened.
    """
    from kvshelf.core import native  # noqa: PLC0415

    found = native.probe(os.fspath(directory), file_mode, dir_mode)
    for name, value in found.items():
        if isinstance(value, tuple):
            found[name] = Outcome(_STATUSES[value[0]], value[1])
    return ProbeReport(**found | {"naming": Naming(found["naming"])})
