"""A container's memory limit, kept by the kernel: a memory cgroup of version 1."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup/memory")
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity with a binary unit."""
    return int(text[:-2]) * UNITS[text[-2:]]


class MemoryLimit:
    """A group for one container. ``path`` is None where there are no such cgroups.

    Args:
        limit: as in a manifest, "12Gi".
    """

    def __init__(self, name: str, limit: str) -> None:
        self.limit = quantity(limit)
        self.path: Path | None = ROOT / f"kvshelf-{os.getpid()}-{name}"
        try:
            self.path.mkdir()
            (self.path / "memory.limit_in_bytes").write_text(str(self.limit))
        except OSError:
            self.close()
            self.path = None

    def number(self, name: str) -> int:
        assert self.path is not None
        return int((self.path / name).read_text())

    def close(self) -> None:
        """Remove it, once the last process is gone."""
        end = time.monotonic() + 10
        while self.path is not None and self.path.is_dir() and time.monotonic() < end:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            time.sleep(0.05)
