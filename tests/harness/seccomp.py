"""Runs a program under a seccomp profile that refuses system calls, as containers have them.

    python -m tests.harness.seccomp EPERM openat2,renameat2 -- PROGRAM ARGUMENTS...

Needs no privilege (no_new_privs). x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

# asm/unistd.h: x86-64, arm64.
CALLS = {
    "clone3": (435, 435),
    "close_range": (436, 436),
    "copy_file_range": (326, 285),
    "faccessat2": (439, 439),
    "fallocate": (285, 47),
    "flock": (73, 32),
    "getrandom": (318, 278),
    "ioprio_set": (251, 30),
    "membarrier": (324, 283),
    "memfd_create": (319, 279),
    "openat2": (437, 437),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "renameat2": (316, 276),
    "rseq": (334, 293),
    "sched_getaffinity": (204, 123),
    "setpriority": (141, 140),
    "statx": (332, 291),
}
_ARCHITECTURES = ("x86_64", "aarch64")
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD_NUMBER, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_REPOSITORY = Path(__file__).parents[2]


def is_possible() -> bool:
    return sys.platform == "linux" and platform.machine() in _ARCHITECTURES


def refuse(number: int, names: list[str]) -> None:
    """Make these calls of this process, and of what it executes, fail with an errno.

    Raises:
        OSError: the kernel takes no filters.
    """
    column = _ARCHITECTURES.index(platform.machine())
    lines = [struct.pack("HBBI", _LOAD_NUMBER, 0, 0, 0)]
    for name in names:
        lines.append(struct.pack("HBBI", _JUMP_EQUAL, 0, 1, CALLS[name][column]))
        lines.append(struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | number))
    lines.append(struct.pack("HBBI", _RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(lines))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program), 0, 0),
    ):
        if libc.prctl(*(ctypes.c_ulong(each) for each in arguments)) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def run_refused(number: str, names: list[str], *line: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m LINE`` to its end in a process whose calls ``names`` fail with ``number``."""
    launcher = [sys.executable, "-m", "tests.harness.seccomp", number, ",".join(names), "--"]
    return subprocess.run(
        [*launcher, sys.executable, "-m", *line],
        cwd=_REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


if __name__ == "__main__":
    end = sys.argv.index("--")
    refuse(getattr(errno, sys.argv[1]), sys.argv[2].split(","))
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
