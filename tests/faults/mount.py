"""A directory mounted again with faults on demand, by a fault-injecting file system.

KVSHELF_FAULTFS names its script; by default it is looked for in ../shared/storage. Tests that use
it are skipped with a reason where it, root or /dev/fuse is absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def script() -> Path:
    named = os.environ.get("KVSHELF_FAULTFS")
    return Path(named) if named else REPOSITORY.parent / "shared/storage/faultfs.py"


def why_not() -> str | None:
    """The reason why nothing can be mounted here, or None."""
    if not script().is_file():
        return f"no fault-injecting file system at {script().name}; set KVSHELF_FAULTFS"
    if os.geteuid() != 0:
        return "mounting needs root"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    return None


class FaultyMount:
    """``source`` is the real directory, ``path`` the same with the faults of ``set``."""

    def __init__(self, directory: Path) -> None:
        self.source, self.path = directory / "source", directory / "mount"
        self._control = directory / "control.json"
        self._stats = directory / "stats.json"
        self.source.mkdir()
        self.path.mkdir()
        self.set()
        command = [sys.executable, str(script()), str(self.source), str(self.path)]
        command += ["--control", str(self._control), "--stats", str(self._stats)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if "mounted" not in line:
            self.close()
            pytest.skip(f"the file system did not mount: {line.strip()!r}")

    def set(self, **faults: Any) -> None:
        """Replace the faults in force; none without arguments. Waits until they are."""
        new = self._control.with_suffix(".new")
        new.write_text(json.dumps(faults))
        before = self._loads()
        new.rename(self._control)
        deadline = time.monotonic() + 2
        # It looks at its control file when it is called, and reports a moment later.
        while before is not None and self._loads() == before and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                os.statvfs(self.path)  # the one call that no fault used here makes hang
            time.sleep(0.005)

    def _loads(self) -> int | None:
        try:
            return int(json.loads(self._stats.read_text())["loads"])
        except (OSError, ValueError, KeyError, AttributeError):
            return None

    def injected(self, fault: str) -> int:
        """How often a fault has happened, as far as reported."""
        time.sleep(0.05)
        return int(json.loads(self._stats.read_text())["injected"].get(fault, 0))

    def close(self) -> None:
        self.set()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)
