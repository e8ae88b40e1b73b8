"""Calls that some file systems refuse: flock(2), fsync(2) of folders, link(2). Threads: any."""

from __future__ import annotations

import errno
import fcntl
import os
from enum import Enum
from pathlib import Path

from kvshelf.errors import ConfigError

# What link(2) answers where there are no links, as in native/src/chunk_writer.cpp.
NO_LINKS = (
    errno.EPERM,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EINVAL,
    errno.EXDEV,
)


class Lock(Enum):
    """What became of an attempt to lock a file."""

    HELD = "held"
    TAKEN = "taken"  # another process holds it
    ABSENT = "absent"  # the file system gives no locks


def try_lock(descriptor: int, *, shared: bool) -> Lock:
    """Lock a file (flock(2)) without waiting for another holder; closing the descriptor unlocks.

    Each file system without locks has an errno of its own: ENOSYS (Lustre without ``flock``),
    EOPNOTSUPP, ENOLCK (NFS without a lock manager), EINVAL or EIO (FUSE), EPERM and EACCES
    (seccomp).
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError as error:
        # The file is no longer there: the caller looks at it again.
        return Lock.TAKEN if error.errno == errno.ESTALE else Lock.ABSENT
    return Lock.HELD


def sync_folder(path: Path, durability: str) -> None:
    """Make the names in a folder last. Only the durability "full" asks for it: with any other, a
    file system that refuses is no fault.

    Raises:
        ConfigError: it is asked for, and refused.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if durability == "full":
            raise _refused(durability, f"the folder {path}", error) from error


def sync_file(descriptor: int, path: Path, durability: str) -> None:
    """Make a file's bytes last; asked for by any durability but "none".

    Raises:
        ConfigError: it is asked for, and refused.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if durability != "none":
            raise _refused(durability, str(path), error) from error


def _refused(durability: str, what: str, error: OSError) -> ConfigError:
    allowed = "none" if durability == "data" else "none or data"
    reason = f"the file system refuses fsync of {what} ({error.strerror})"
    return ConfigError("durability", durability, f"{reason}: allowed here is {allowed}")
