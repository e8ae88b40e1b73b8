"""When a chunk file was last used, told from its times. Pure.

The same as native/include/kvshelf/use_time.h; docs/layout.md ("Times of a chunk file") is the
contract. Sources: utimensat(2), mount(8) ("relatime", "strictatime").
"""

from __future__ import annotations

import os
from typing import NamedTuple

_SECOND_NS = 10**9
# Storing takes a moment; only a use that comes later than this counts as one.
REUSE_NS = _SECOND_NS
# A touch is written so soon after the use. What changes a file later (chmod, a hard link) may do so
# after a reader.
TOUCH_DELAY_NS = 60 * _SECOND_NS
# A touch sets the modification time, which no reader changes. Its nanoseconds within the
# millisecond say whether the chunk was used again since it was stored.
MARK_UNIT_NS = 1_000_000
MARK_STORED_NS = 173_000
MARK_REUSED_NS = 619_000


class UseTime(NamedTuple):
    """The last use in nanoseconds since 1970, and whether the chunk was used since its storing."""

    ns: int
    reused: bool


def marked(time_ns: int, *, reused: bool) -> int:
    """The time that a touch writes for a use at ``time_ns``."""
    return time_ns - time_ns % MARK_UNIT_NS + (MARK_REUSED_NS if reused else MARK_STORED_NS)


def last_use(file: os.stat_result) -> UseTime:
    return use_of(file.st_atime_ns, file.st_mtime_ns, file.st_ctime_ns)


def stored_ns(file: os.stat_result) -> int | None:
    """When a chunk file was stored; None if its times no longer say so, since it was used again."""
    return None if file.st_mtime_ns % MARK_UNIT_NS == MARK_REUSED_NS else file.st_mtime_ns


def use_of(accessed_ns: int, modified_ns: int, changed_ns: int) -> UseTime:
    """The last use, from the access, modification and change time in nanoseconds.

    The change time is the witness: utimensat(2) sets it to now, and a read leaves it alone. An
    access time behind it was set by a touch of an older kvshelf, a moment before; one ahead of it
    comes from a reader. No use is later than the change time, which the file system's clock sets.
    """
    used_ns, mark = modified_ns, modified_ns % MARK_UNIT_NS
    if mark in (MARK_STORED_NS, MARK_REUSED_NS):
        reused = mark == MARK_REUSED_NS
        if modified_ns < accessed_ns < changed_ns < accessed_ns + TOUCH_DELAY_NS:
            used_ns, reused = accessed_ns, True
    else:
        # A touch came before the change time, but for the error of its clock. Times of whole
        # seconds leave no room for that: a reader's may be the same.
        is_coarse = accessed_ns % _SECOND_NS == 0 and changed_ns % _SECOND_NS == 0
        if accessed_ns < (changed_ns if is_coarse else changed_ns + REUSE_NS):
            used_ns = accessed_ns
        reused = used_ns > modified_ns + REUSE_NS
    # Kernels stamp files with the time of their last tick: a touch may be ahead of that, a little.
    if 0 < changed_ns < used_ns - REUSE_NS:
        used_ns = changed_ns
    return UseTime(used_ns, reused)
