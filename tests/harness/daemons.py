"""Programs and mounts that a shared file system under test needs, all ended at the end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

READY_SECONDS = 60.0
_STEP_SECONDS = 30.0


class NotStarted(Exception):  # noqa: N818 - a reason to skip
    """The file system cannot be had here; says why."""


def free_port() -> int:
    """A TCP port of the loopback device that nobody listens on, for now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Daemons:
    """What was started below ``folder``. One owner; a context that ends all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "log").mkdir(parents=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def finally_run(self, *line: str) -> None:
        """At the end, before what was begun earlier is ended."""
        self._undo.callback(
            subprocess.run, line, check=False, capture_output=True, timeout=_STEP_SECONDS
        )

    def run(self, *line: str, seconds: float = _STEP_SECONDS) -> str:
        """Run a command to its end; what it printed.

        Raises:
            NotStarted: it failed.
        """
        try:
            done = subprocess.run(
                line, check=False, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise NotStarted(f"{line[0]} does not end: {error}") from None
        if done.returncode:
            raise NotStarted(f"{' '.join(line[:4])}: {(done.stderr or done.stdout)[-300:]}")
        return done.stdout

    def start(self, name: str, *line: str) -> None:
        """Start a program that stays; its output is ``log/NAME``."""
        with (self.folder / "log" / name).open("ab") as log:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._running[name] = process
        self._undo.callback(self._end, process)

    def is_running(self, name: str) -> bool:
        return self._running[name].poll() is None

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def mount(self, name: str, at: Path, *line: str) -> None:
        """Start a program that mounts at ``at``."""
        at.mkdir()
        self.start(name, *line)
        # A lazy one lets the program end, whatever is open.
        self.finally_run("umount", "-l", str(at))

    def until(self, ready: Callable[[], object], what: str) -> None:
        """Raises NotStarted if it is not so in time."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(NotStarted):
                if ready():
                    return
            if time.monotonic() > deadline:
                raise NotStarted(f"no {what} in time: {self.last_words()}")
            time.sleep(0.1)

    def mounted(self, places: Sequence[Path]) -> None:
        """Until all are mounted."""
        self.until(lambda: all(os.path.ismount(place) for place in places), "mount")

    def last_words(self) -> str:
        """The end of the output of each program that has ended."""
        ended = [name for name in self._running if not self.is_running(name)]
        texts = [(self.folder / "log" / name).read_text(errors="replace") for name in ended]
        return "; ".join(f"{name}: {text[-200:]}" for name, text in zip(ended, texts, strict=True))
