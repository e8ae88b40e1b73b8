"""Whether tests may mount file systems, in mount namespaces of their own (unshare(1))."""

from __future__ import annotations

import functools
import subprocess


@functools.cache
def mounts_allowed() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
