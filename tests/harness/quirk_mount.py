"""Mounts quirkfs.py for a test, or says why it cannot."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.faulty_mount import REPOSITORY, why_not

__all__ = ["REPOSITORY", "QuirkMount", "quirk_mount", "rename_noreplace", "why_not"]

_START_SECONDS = 20.0
_RENAME_NOREPLACE, _AT_FDCWD = 1, -100  # linux/fs.h, fcntl.h


def rename_noreplace(source: Path, target: Path) -> int:
    """renameat2(RENAME_NOREPLACE): 0 or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    ends = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target))
    return 0 if libc.renameat2(*ends, _RENAME_NOREPLACE) == 0 else ctypes.get_errno()


@dataclasses.dataclass
class QuirkMount:
    """``source`` is the real directory, ``path`` the same with the quirks of ``set``."""

    source: Path
    path: Path
    control: Path

    def set(self, **quirks: Any) -> None:
        """Replace the quirks in force (``quirkfs.Quirks``); none without arguments."""
        new = self.control.with_suffix(".new")
        new.write_text(json.dumps(quirks))
        new.rename(self.control)


@contextmanager
def quirk_mount(directory: Path, **quirks: Any) -> Iterator[QuirkMount]:
    """Mount below ``directory``; skips the test where that is not possible.

    Raises:
        OSError: it did not mount.
    """
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    mount = QuirkMount(directory / "source", directory / "mount", directory / "quirks.json")
    for folder in (mount.source, mount.path):
        folder.mkdir(parents=True, exist_ok=True)
    mount.set(**quirks)
    line = [sys.executable, "-m", "tests.harness.quirkfs"]
    line += [str(mount.source), str(mount.path), str(mount.control)]
    with subprocess.Popen(line, cwd=REPOSITORY) as server:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not os.path.ismount(mount.path):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise OSError(f"quirkfs did not mount at {mount.path}")
                time.sleep(0.01)
            yield mount
        finally:
            mount.set()
            subprocess.run(["umount", "-l", mount.path], check=False, capture_output=True)
            server.terminate()
