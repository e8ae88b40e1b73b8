"""This process as the names of temp files and leases say it, and others: docs/layout.md.

A sandbox may hide any part of it (WSL, LXC, ``ProcSubset=pid``, no /proc). Threads: any.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from kvshelf.disk.layout import UNKNOWN_BOOT, TempOwner, owner_is_dead, safe_host

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def this_host() -> str:
    return safe_host(socket.gethostname())


def this_boot() -> str:
    """First 8 hex digits of the kernel's boot id (random(4)); zeros where a sandbox hides it."""
    try:
        digits = _BOOT_ID.read_text("utf-8", "replace")[:8]
    except OSError:
        return UNKNOWN_BOOT
    return digits if re.fullmatch("[0-9a-f]{8}", digits) else UNKNOWN_BOOT


def this_pid_namespace() -> int:
    """Inode of this process's PID namespace (pid_namespaces(7)); 0 where a sandbox hides it."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def start_ticks_of(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc_pid_stat(5), field 22), or None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The second field is the name in parentheses, which may itself hold spaces and parentheses.
    try:
        return int(fields.rpartition(")")[2].split()[19])
    except (IndexError, ValueError):  # an emulated /proc
        return None


def this_owner() -> TempOwner:
    """This process, as the owner of temp files."""
    pid = os.getpid()
    return TempOwner(this_host(), this_boot(), this_pid_namespace(), pid, start_ticks_of(pid) or 0)


def is_gone(owner: TempOwner, here: TempOwner) -> bool | None:
    """None: nobody here can say, because it is of another host, boot or PID namespace, or hidden.

    Args:
        here: this process.
    """
    dead = owner_is_dead(owner, here=here, start_ticks_of=start_ticks_of)
    return None if dead and _is_hidden(owner.pid) else dead


def _is_hidden(pid: int) -> bool:
    """Whether a process is there that /proc does not show: with hidepid, that of another user."""
    if start_ticks_of(pid) is not None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
