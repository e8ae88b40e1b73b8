"""Whether a workload fits: on the mount and in memory. Reads only."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from kvshelf.bench.measure import Workload
from kvshelf.disk.volume import volume_of

# What the engine wrote and what plain calls wrote lie there at once; and others want room too.
_TIMES_ON_THE_MOUNT = 3
# Limits of a control group, versions 2 and 1 (cgroups(7)), as a container sees them.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def shortage(root: Path, workload: Workload, memory_bytes: int | None = None) -> str:
    """What is missing for a workload, in words; "" if it fits.

    Args:
        memory_bytes: that may be used; by default what this machine has.

    Raises:
        OSError: the file system does not say.
    """
    needed = _TIMES_ON_THE_MOUNT * workload.total_bytes
    volume = volume_of(root)
    # Where room is not counted, the first write that fails says that there is none.
    if volume.counts_bytes and volume.free_bytes < needed:
        return f"needs {needed // 10**6} MB of room, and there are {volume.free_bytes // 10**6}"
    memory = usable_memory_bytes() if memory_bytes is None else memory_bytes
    if memory < workload.total_bytes:
        needed = workload.total_bytes
        return f"needs {needed // 10**6} MB of memory, and there are {memory // 10**6}"
    return ""


def usable_memory_bytes() -> int:
    """That can be had without swapping, by the kernel's estimate and the container's limit."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError):
        match = re.search(r"^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
        if match:
            found.append(int(match[1]) << 10)
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path(limit).read_text()))
    return min(found)
