"""Starts faultfs.py: a directory mounted again with faults on demand."""

from __future__ import annotations

import contextlib
import ctypes.util
import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 20.0
# A server that is frozen answers when it goes on.
ANSWER_SECONDS = 2.0


@functools.cache
def why_not() -> str | None:
    """The reason why nothing can be mounted here, or None."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if ctypes.util.find_library("fuse3") is None:
        return "not installed: libfuse3-3"
    return None


class FaultyMount:
    """``source`` is the real directory, ``path`` the same with the faults of ``set``.

    All methods from any thread. When this process ends, the mount does.

    Args:
        directory: where both are made.
        prefix: a command that starts the file server, such as taskset(1).

    Raises:
        OSError: it did not mount.
    """

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        self.source, self.path = directory / "source", directory / "mount"
        for folder in (self.source, self.path):
            folder.mkdir(parents=True, exist_ok=True)  # it may be mounted again
        command = [*prefix, sys.executable, "-m", "tests.harness.faultfs"]
        command += [str(self.source.resolve()), str(self.path.resolve())]
        self._lock = threading.Lock()
        self._asked = 0
        self._unread = b""
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        line = self._line(START_SECONDS)
        if not line.get("mounted"):
            self.close()
            raise OSError(f"the file system did not mount: {line}")

    def set(self, **faults: Any) -> None:
        """Replace the faults in force (``faults.Faults``); none without arguments.

        They are in force when this returns, unless the server is frozen. Calls that hang go on.

        Raises:
            ValueError: there is no such fault; the old ones stay.
        """
        error = self._ask({"set": faults}).get("error")
        if error:
            raise ValueError(error)

    def freeze(self) -> None:
        """Let no call return, whatever it is, as suddenly as a file server that loses its power."""
        self._process.send_signal(signal.SIGSTOP)
        # On a busy machine its threads run on for a while after kill(2) has returned.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def injected(self) -> dict[str, int]:
        """How often each fault has happened since the mount; {} while the server is frozen."""
        return dict(self._ask({"state": {}}).get("injected", {}))

    def stalled(self) -> int:
        """Calls that hang or are delayed now."""
        return int(self._ask({"state": {}}).get("stalled", 0))

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer, or {} if there is none in time."""
        with self._lock:
            self._asked += 1
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(
                    json.dumps({"id": self._asked, **command}).encode() + b"\n"
                )
                self._process.stdin.flush()
            except (BrokenPipeError, ValueError):  # it has ended
                return {}
            while answer := self._line(ANSWER_SECONDS):
                if answer.get("id") == self._asked:
                    return answer
            return {}

    def _line(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([number], [], [], seconds)[0]:
                return {}
            more = os.read(number, 1 << 16)
            if not more:
                return {}
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Unmount. What hangs goes on, with an error if it must."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        self.thaw()
        self.set()
        with contextlib.suppress(BrokenPipeError):  # of a server that has ended
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        # A killed server leaves calls that wait for it; force ends them.
        command = ["umount", "-f", "-l", str(self.path)]
        subprocess.run(command, capture_output=True, check=False, timeout=20)
