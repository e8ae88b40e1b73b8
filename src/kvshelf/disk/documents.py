"""Reads the small JSON files of a shelf: marker, namespace.json, a scrub's place. Any thread."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any

BYTES_MAX = 1 << 20


def read_json(path: str | os.PathLike[str], dir_fd: int | None = None) -> Any:
    """Parse a small JSON file that is no link; ``dir_fd`` as in ``os.open``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, larger than 1 MiB, a link or no regular file.
    """
    # O_NONBLOCK: opening a pipe must not wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > BYTES_MAX:
        raise ValueError("larger than 1 MiB")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
