"""How soon a file made on one node is found on another: two doctors on one shelf talk in files.

Each of them says hello and waits for the other's. The one with the lower token then makes ``ping``
files, which the other has looked for in vain before, as a lookup would; it answers each with a
``pong`` that the first has looked for as well. Half of a round is how late a node finds what
another stored. No two clocks are compared but to say how far they are apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvshelf.disk.layout import DOCTOR_FOLDER
from kvshelf.disk.owner import Users, make_folder
from kvshelf.disk.this_process import this_host
from kvshelf.disk.tree import folder_at
from kvshelf.doctor.findings import Finding, fine, note, problem, warning

ROUNDS = 5
_DIR_MODE, _FILE_MODE = 0o2770, 0o640
_LOOK_SECONDS = 0.01
_HELLO_SECONDS = 0.5
# Long enough for a client to remember that the file was absent.
_HEAD_START_SECONDS = 0.3
_LATE_SECONDS = 1.0
_CONTENT_BYTES = 256 << 10
# A doctor that was killed leaves these; a living one renews its hellos all the time, and of the
# others none is needed for more than a minute.
_HEX16 = "[0-9a-f]{16}"
_NAMES = rf"hello-{_HEX16}-[01]|p[io]ng-{_HEX16}-{_HEX16}-\d|(?:result|bye)-{_HEX16}-{_HEX16}"
_OUR_NAME = re.compile(rf"(?:\.{_HEX16}-)?(?:{_NAMES})")
_DEAD_SECONDS = 3600.0


class _TimeoutError(Exception):
    """The other one did not answer in time."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """What two doctors found.

    Attributes:
        peer: the other's host name.
        lags_seconds: half of each round, this side's.
        skew_seconds: the other's clock minus ours.
        damaged: answers whose bytes were not those that the other had written.
    """

    peer: str
    lags_seconds: tuple[float, ...]
    skew_seconds: float
    damaged: int


def meet(root: Path, wait_seconds: float, clock: Callable[[], float] = time.time) -> Meeting | None:
    """Wait for another doctor on the same shelf and measure with it; None if none came.

    Raises:
        OSError: the mount failed.
    """
    folder = root / DOCTOR_FOLDER
    make_folder(folder, _DIR_MODE, Users.of(root))
    us = _Party(folder, clock)
    deadline = time.monotonic() + wait_seconds
    try:
        them = us.find_other(deadline)
        if them is None:
            return None
        lags, skews, damaged = us.talk(them, deadline)
        return Meeting(them["host"], tuple(lags), statistics.median(skews), damaged)
    except _TimeoutError:
        return None
    finally:
        us.leave()


def findings_of(meeting: Meeting | None) -> Iterator[Finding]:
    if meeting is None:
        yield note(
            "peers",
            "no other doctor came to this shelf, or it does not see this one's files",
            "run the same command on another node within the waiting time; if both wait in vain, "
            "they do not have the same directory",
        )
        return
    worst, middle = max(meeting.lags_seconds), statistics.median(meeting.lags_seconds)
    text = f"{meeting.peer} finds a new file after {1e3 * middle:.0f} ms (worst {1e3 * worst:.0f})"
    if meeting.damaged:
        yield problem(
            "peers",
            f"{meeting.damaged} of {ROUNDS} files had other bytes there than here",
            "do not share this mount: chunks would be removed as damaged",
        )
    if worst > _LATE_SECONDS:
        yield warning(
            "peers",
            f"{text}: clients remember that a name was absent",
            "NFS: lookupcache=positive; JuiceFS: --negative-entry-cache=0; until then a chunk "
            "is a miss on the other node for that long, never wrong",
        )
    else:
        yield fine("peers", text)
    if abs(meeting.skew_seconds) > _LATE_SECONDS:
        text = f"its clock differs by {meeting.skew_seconds:+.1f} s"
        yield warning("peers", text, "NTP on both")


class _Party:
    """One side of a meeting."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.folder, self.clock = folder, clock
        self.token = secrets.token_hex(8)
        self.beat, self.beat_at = 0, 0.0
        self.made: list[Path] = []

    def find_other(self, deadline: float) -> dict[str, Any] | None:
        """The hello of a living other: one that changes while we look."""
        before: dict[str, dict[str, Any]] = {}
        self._hello()
        self._remove_dead()
        while time.monotonic() < deadline:
            self._hello()
            now = self._hellos()
            for token, hello in now.items():
                if token in before and hello["beat"] != before[token]["beat"]:
                    return hello
                before.setdefault(token, hello)
            time.sleep(_HELLO_SECONDS)
        return None

    def _remove_dead(self) -> None:
        """Remove files of doctors that were killed: an hour older than ours, by the file system's
        clock. Regular files only, and no link is followed."""
        with contextlib.suppress(OSError):
            now = self.made[0].lstat().st_mtime
            with folder_at(None, self.folder) as folder:
                names = os.listdir(folder)  # noqa: PTH208 - of a descriptor
                for name in filter(_OUR_NAME.fullmatch, names):
                    with contextlib.suppress(OSError):  # another doctor may be faster
                        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                        if stat.S_ISREG(found.st_mode) and now - found.st_mtime > _DEAD_SECONDS:
                            os.unlink(name, dir_fd=folder)

    def _hello(self) -> None:
        self.beat, self.beat_at = self.beat + 1, time.monotonic()
        hello = {"token": self.token, "host": this_host(), "beat": self.beat}
        self._put(f"hello-{self.token}-{self.beat % 2}", json.dumps(hello).encode())

    def _hellos(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path in self.folder.glob("hello-*"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                hello = json.loads(path.read_bytes())
                token = str(hello["token"])
                newer = token not in found or hello["beat"] > found[token]["beat"]
                if token != self.token and newer:
                    host, beat = str(hello["host"]), int(hello["beat"])
                    found[token] = {"token": token, "host": host, "beat": beat}
        return found

    def talk(self, them: dict[str, Any], deadline: float) -> tuple[list[float], list[float], int]:
        pair = "-".join(sorted((self.token, them["token"])))
        first = self.token < them["token"]
        lags, skews, damaged = [], [], 0
        # As long as the other may not have seen us, our hello goes on changing.
        self._hello()
        for number in range(ROUNDS):
            mine, theirs = ("ping", "pong") if first else ("pong", "ping")
            wanted = self.folder / f"{theirs}-{pair}-{number}"
            if first:
                self._wait_quietly(wanted, _HEAD_START_SECONDS)
                started, sent_at = time.perf_counter(), self.clock()
                self._send(f"{mine}-{pair}-{number}")
                answer = self._await(wanted, deadline)
                lags.append((time.perf_counter() - started) / 2)
                skews.append(answer["clock"] - (sent_at + self.clock()) / 2)
            else:
                answer = self._await(wanted, deadline)
                self._send(f"{mine}-{pair}-{number}")
            damaged += not answer["whole"]
        if first:
            self._put(f"result-{pair}", json.dumps({"lags": lags, "skews": skews}).encode())
            self._await_gone_or(self.folder / f"bye-{pair}", deadline)
        else:
            result = self._read_result(self.folder / f"result-{pair}", deadline)
            lags, skews = result["lags"], [-skew for skew in result["skews"]]
            self._put(f"bye-{pair}", b"{}")
            time.sleep(_HELLO_SECONDS)
        return lags, skews, damaged

    def _send(self, name: str) -> None:
        content = secrets.token_bytes(_CONTENT_BYTES)
        head = {"clock": self.clock(), "sha256": hashlib.sha256(content).hexdigest()}
        self._put(name, json.dumps(head).encode() + b"\n" + content)

    def _put(self, name: str, data: bytes) -> None:
        """As chunks are published: whole, under a new name."""
        path, temp = self.folder / name, self.folder / f".{self.token}-{name}"
        # Before they are there: whoever interrupts us (SIGTERM) may do so at once after.
        self.made += [each for each in (path, temp) if each not in self.made]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temp, flags, _FILE_MODE), "wb") as file:
            Users.of(self.folder).give(file.fileno(), _FILE_MODE)
            file.write(data)
        temp.replace(path)

    def _wait_quietly(self, path: Path, seconds: float) -> None:
        """Look for a file that is not there yet, so that this client may remember that."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            path.exists()
            time.sleep(_LOOK_SECONDS)

    def _await(self, path: Path, deadline: float) -> dict[str, Any]:
        while time.monotonic() < deadline:
            try:
                head, _, content = path.read_bytes().partition(b"\n")
            except FileNotFoundError:
                self._beat_now_and_then()
                time.sleep(_LOOK_SECONDS)
                continue
            try:
                answer = json.loads(head)
                whole = hashlib.sha256(content).hexdigest() == answer["sha256"]
                return {"clock": float(answer["clock"]), "whole": whole}
            except (ValueError, KeyError, TypeError):
                return {"clock": self.clock(), "whole": False}
        raise _TimeoutError

    def _read_result(self, path: Path, deadline: float) -> dict[str, list[float]]:
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                value: dict[str, list[float]] = json.loads(path.read_bytes())
                return value
            time.sleep(_LOOK_SECONDS)
        raise _TimeoutError

    def _await_gone_or(self, path: Path, deadline: float) -> None:
        """Our files must stay until the other has read them; its word for that may come late."""
        until = min(deadline, time.monotonic() + 40.0)  # NFS may not see it for 30 s
        while time.monotonic() < until and not path.exists():
            time.sleep(_LOOK_SECONDS)

    def _beat_now_and_then(self) -> None:
        with contextlib.suppress(OSError):
            if time.monotonic() - self.beat_at > _HELLO_SECONDS:
                self._hello()

    def leave(self) -> None:
        for path in self.made:
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):  # not empty: the other is still there
            os.rmdir(self.folder)  # noqa: PTH106
