"""What to do about a fault of eviction, for its log line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kvshelf.disk.layout import EVICT_FOLDER


def mend_of(error: BaseException, root: Path) -> str:
    """In words that follow the error's own; "" if nothing better is known than its text."""
    number = error.errno if isinstance(error, OSError) else None
    folder = root / EVICT_FOLDER
    if number == errno.EROFS:
        return "mount it read-write; the kernel's log says why it is not, if nobody asked for it"
    if number in (errno.EACCES, errno.EPERM):
        return (
            f"let this user ({os.geteuid()}:{os.getegid()}) write to {folder}: give it the owner "
            "and group of the root, and mode 2770"
        )
    if number in (errno.ENOTDIR, errno.ELOOP):
        return f"move away what lies at {folder}: it is no folder"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "free some: not even a name can change there"
    if number in (errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.ENODEV):
        return "mount it anew; see its server's and the kernel's log"
    return ""


def with_mend(error: BaseException, root: Path) -> str:
    mend = mend_of(error, root)
    return f"{error}; {mend}" if mend else str(error)
