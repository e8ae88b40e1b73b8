"""System calls that fail, hang or lie in a process with an unchanged kvshelf, by rules.

A library to preload (native/tests/faulty_calls.cpp) stands between the engine's threads and libc.
It reads its rules from a file that is mapped here too, so one process may steer others. Far quicker
than a mounted file system with faults (faultfs.py), and it needs no privileges; but the
kernel's own part, such as its page cache and what it makes of a server's answers, is for that one.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "native/tests/faulty_calls.cpp"
CONTROL = "KVSHELF_FAULTY_CALLS"

# As in the library, by position.
OPERATIONS = (
    *("open", "stat", "fstat", "read", "write", "allocate", "fsync", "rename", "link"),
    *("plain rename", "mkdir", "unlink", "utimens", "close"),
)
ACTIONS = ("none", "error", "error after", "short", "flip", "torn", "swap", "hang", "hang after")
RULES_MAX, COUNTERS = 32, 8192
RELEASE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Rule:
    """Which calls meet a fault, and which.

    Attributes:
        operation: one of OPERATIONS. "rename" is renameat2, "plain rename" the one that replaces.
        action: one of ACTIONS. "error": nothing is done; "error after": it is done and denied;
            "short": half is transferred; "flip": one bit of what is transferred; "torn": half is
            written and all of it reported; "swap": ``other`` is opened; "hang" and "hang after":
            for as long as the rules stay.
        error: name of the errno of an error.
        path: pattern of the file's (of a rename or link: the new) absolute path.
        skip, count: so many matching calls are let pass, then so many are hit; 0: all others.
        probability: of a call to be hit, decided by ``seed``, the rule's place, the kind of thread,
            the path under the root and how often that was asked before, so that it is the same in
            every run with the same calls of each thread.
        role: only threads of this kind: "io", "meta", "copy".
        offsets: only reads and writes that begin there.
    """

    operation: str
    action: str
    error: str = "EIO"
    path: str = "*"
    skip: int = 0
    count: int = 0
    probability: float = 1.0
    seed: int = 0
    role: str = ""
    offsets: tuple[int, int] = (0, 1 << 62)
    other: str = ""


class _Rule(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("active", "op", "action")),
        ("error", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("skip", "count", "probability", "seed", "hold")),
        *((name, ctypes.c_uint32) for name in ("matched", "injected", "waiting")),
        *((name, ctypes.c_int64) for name in ("begin", "end")),
        ("role", ctypes.c_char * 16),
        ("path", ctypes.c_char * 240),
        ("other", ctypes.c_char * 240),
    )


class _Control(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("root_chars", ctypes.c_uint32),
        ("trace", ctypes.c_uint64),
        ("calls", ctypes.c_uint64 * len(OPERATIONS)),
        ("rules", _Rule * RULES_MAX),
        ("counters", ctypes.c_uint32 * COUNTERS),
    )


def why_no_calls() -> str | None:
    """The reason why nothing can be preloaded here, or None."""
    return None if shutil.which("g++") else "g++ builds the library to preload, and is not here"


@functools.cache
def library() -> Path:
    """The library, built when its source is new. Some seconds."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    built = REPOSITORY / "build" / f"faulty_calls-{digest}.so"
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        new = built.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        subprocess.run(["g++", *flags, str(SOURCE), "-o", str(new)], check=True, timeout=120)
        new.rename(built)
    return built


class FaultyCalls:
    """The rules of all processes that are started with ``environment``. One owner.

    Args:
        file: is made, and holds the rules.
        root: of the shelf: what is under it is the same in every run.
    """

    def __init__(self, file: Path, root: Path | str = "") -> None:
        self.file = file
        file.write_bytes(bytes(ctypes.sizeof(_Control)))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)
        self._control = _Control.from_buffer(self._map)
        self._control.size = ctypes.sizeof(_Control)
        self._rules = 0
        self.root(root)

    def root(self, root: Path | str) -> None:
        self._control.root_chars = len(str(root))

    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(library()), CONTROL: str(self.file)}

    def attach(self) -> None:
        """Let the rules apply to this process, which was started with the library preloaded."""
        if ctypes.CDLL(str(library())).faulty_calls_attach(os.fsencode(self.file)) != 0:
            raise OSError(f"the preloaded library does not take {self.file}")

    def set(self, *rules: Rule) -> None:
        """Replace the rules; none without arguments. What hangs goes on."""
        self.release()
        control = self._control
        control.trace = 0
        ctypes.memset(control.counters, 0, ctypes.sizeof(control.counters))
        ctypes.memset(control.calls, 0, ctypes.sizeof(control.calls))
        for slot, rule in zip(control.rules, rules, strict=False):
            slot.op, slot.action = OPERATIONS.index(rule.operation), ACTIONS.index(rule.action)
            slot.error = getattr(errno, rule.error)
            slot.skip, slot.count = rule.skip, rule.count
            slot.probability, slot.seed = int(rule.probability * 0xFFFFFFFF), rule.seed
            slot.matched = slot.injected = 0
            slot.begin, slot.end = rule.offsets
            slot.role, slot.path, slot.other = (
                text.encode() for text in (rule.role, rule.path, rule.other)
            )
            slot.hold = 1
            slot.active = 1  # last: from now on it is read
        self._rules = len(rules)

    def release(self) -> None:
        """No rule applies any more, and every call that hangs returns.

        Raises:
            TimeoutError: one does not.
        """
        for slot in self._control.rules:
            slot.active = slot.hold = 0
        deadline = time.monotonic() + RELEASE_SECONDS
        while any(slot.waiting for slot in self._control.rules):
            if time.monotonic() > deadline:
                raise TimeoutError("a call that hung does not return")
            time.sleep(0.001)

    def injected(self) -> list[int]:
        """How often each rule was met."""
        return [slot.injected for slot in self._control.rules[: self._rules]]

    def matched(self) -> list[int]:
        """How many calls each rule could have been about."""
        return [slot.matched for slot in self._control.rules[: self._rules]]

    def waiting(self) -> int:
        """Threads that hang now."""
        return sum(slot.waiting for slot in self._control.rules)

    def calls(self) -> dict[str, int]:
        """Calls of the engine's threads since ``set``, by operation."""
        return dict(zip(OPERATIONS, self._control.calls, strict=True))

    def trace(self) -> int:
        """A digest of all that was injected since ``set``, whatever the order."""
        return int(self._control.trace)
