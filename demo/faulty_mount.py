"""A directory mounted again with faults on demand, by a fault-injecting file system.

KVSHELF_FAULTFS names its script; by default it is looked for in ../shared/storage. Used by
tests/faults and by benchmarks/bench_faults.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
START_SECONDS = 20.0


def shared_storage(variable: str, name: str = "") -> Path:
    """A script or folder that does not belong to the project: where the environment says, or
    ``name`` in ../shared/storage."""
    named = os.environ.get(variable)
    return Path(named) if named else REPOSITORY.parent / "shared/storage" / name


def script() -> Path:
    return shared_storage("KVSHELF_FAULTFS", "faultfs.py")


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
    """``source`` is the real directory, ``path`` the same with the faults of ``set``.

    Args:
        directory: where both are made.
        prefix: a command that starts the file server, such as taskset(1).

    Raises:
        OSError: it did not mount.
    """

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        self.source, self.path = directory / "source", directory / "mount"
        self._control = directory / "control.json"
        self._stats = directory / "stats.json"
        for folder in (self.source, self.path):
            folder.mkdir(parents=True, exist_ok=True)  # it may be mounted anew
        self.set()
        command = [*prefix, sys.executable, str(script()), str(self.source), str(self.path)]
        command += ["--control", str(self._control), "--stats", str(self._stats)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        is_ready = select.select([self._process.stdout], [], [], START_SECONDS)[0]
        line = self._process.stdout.readline() if is_ready else "no answer"
        if "mounted" not in line:
            self.close()
            raise OSError(f"the file system did not mount: {line.strip()!r}")

    def set(self, **faults: Any) -> None:
        """Replace the faults in force; none without arguments. Waits until they are."""
        new = self._control.with_suffix(".new")
        new.write_text(json.dumps(faults))
        before = self._reported("loads")
        new.rename(self._control)
        deadline = time.monotonic() + 2
        # It looks at its control file when it is called, and reports a moment later.
        while before is not None and self._reported("loads") == before:
            if time.monotonic() > deadline:
                return
            with contextlib.suppress(OSError):
                os.statvfs(self.path)  # the one call that no fault used here makes hang
            time.sleep(0.005)

    def freeze(self) -> None:
        """No call returns any more, whatever it is: harder than the server's own stalls, which
        spare writes and metadata, and as sudden as a file server that loses its power."""
        self._process.send_signal(signal.SIGSTOP)
        # On a busy machine its threads run on for a while after kill(2) has returned.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def injected(self) -> dict[str, int]:
        """How often each fault has happened, as far as reported."""
        time.sleep(0.05)
        return dict(self._reported("injected") or {})

    def _reported(self, name: str) -> Any:
        try:
            return json.loads(self._stats.read_text())[name]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def close(self) -> None:
        self.thaw()
        self.set()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # A killed server leaves calls that wait for it; force ends them.
        command = ["umount", "-f", "-l", str(self.path)]
        subprocess.run(command, capture_output=True, check=False, timeout=20)
