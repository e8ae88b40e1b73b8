"""Which calls of a mounted file system fail, hang or lie, and how: the settings of faultfs.py."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# "stat" is a lookup by name or a look at attributes, "open" of an existing file, "close" what
# close(2) says; "rename_after" fails a rename that has been done.
METADATA = (
    *("stat", "open", "create", "rename", "link", "unlink", "mkdir", "rmdir", "readdir", "statfs"),
    *("utimens", "truncate", "chmod"),
)
OPERATIONS = (*METADATA, "read", "write", "fsync", "close", "allocate", "rename_after")


@dataclass(frozen=True)
class Faults:
    """What happens to each call that matches.

    Attributes:
        match: a pattern of the file's name, or, with a "/", of its path below the mount; None: all.
            A rename or link matches by either name, an open file by the name that opened it.
        skip, count: of the calls that match and meet one fault, let ``skip`` pass, then hit
            ``count``; 0: all others.
        probability: of each of these to be hit.
        seed: of what is random, from each ``set`` on.
        metadata_latency_ms, read_latency_ms, write_latency_ms: before each call of these. Reads
            and writes of more than 1 MiB are several calls.
        bandwidth_mb_s: of all reads and writes together, in 10^6 bytes a second; whatever matches.
        stall_lookup_s, stall_read_s, stall_write_s: each "stat", read or write hangs for so long,
            or until the next ``set``.
        short_read, short_write: the part of the bytes that each takes; one byte at least.
        flip_read_bit: one bit of what each read returns is wrong.
        errors: operation -> errno, of calls that fail before they do anything.
    """

    match: str | None = None
    skip: int = 0
    count: int = 0
    probability: float = 1.0
    seed: int = 1
    metadata_latency_ms: float = 0.0
    read_latency_ms: float = 0.0
    write_latency_ms: float = 0.0
    bandwidth_mb_s: float = 0.0
    stall_lookup_s: float = 0.0
    stall_read_s: float = 0.0
    stall_write_s: float = 0.0
    short_read: float = 0.0
    short_write: float = 0.0
    flip_read_bit: bool = False
    errors: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Faults:
        """From attributes by name, and operations with the name of an errno: ``read="EIO"``.

        Raises:
            ValueError: there is no such setting or errno, or the value has the wrong type.
        """
        fields = {each.name: each for each in dataclasses.fields(cls) if each.name != "errors"}
        known: dict[str, Any] = {}
        errors: dict[str, int] = {}
        for name, value in settings.items():
            if name in OPERATIONS:
                number = getattr(errno, str(value), None)
                if not isinstance(number, int):
                    raise ValueError(f"{name}: {value!r} is no errno")
                errors[name] = number
            elif name not in fields:
                raise ValueError(f"there is no fault {name!r}")
            else:
                expected = type(fields[name].default) if name != "match" else str
                if not isinstance(value, (int, float) if expected is float else expected):
                    raise ValueError(f"{name}: {value!r} is no {expected.__name__}")
                known[name] = value
        return cls(errors=errors, **known)


class InForce:
    """Faults from one ``set`` to the next. All methods from any thread."""

    def __init__(self, faults: Faults, injected: Counter[str]) -> None:
        self.faults = faults
        self._injected = injected
        self._asked: Counter[str] = Counter()
        self._random = random.Random(faults.seed)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._free_at = 0.0
        self.stalled = 0

    def end(self) -> None:
        """Let everything that waits go on."""
        self._over.set()

    def matches(self, *paths: str) -> bool:
        pattern = self.faults.match
        if pattern is None:
            return True
        names = paths if "/" in pattern else [path.rpartition("/")[2] for path in paths]
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    def meet(self, operation: str, *paths: str) -> None:
        """Wait as long as this call has to, or fail it.

        Raises:
            OSError: the one that was asked for.
        """
        if not self.matches(*paths):
            return
        faults = self.faults
        kind = operation if operation in ("read", "write") else "metadata"
        if operation in METADATA or kind != "metadata":
            self._wait(f"{kind}_latency_ms", 1e-3)
        if operation in ("stat", "read", "write"):
            self._wait("stall_lookup_s" if operation == "stat" else f"stall_{operation}_s", 1.0)
        if operation in faults.errors and self.hits(operation):
            raise OSError(faults.errors[operation], operation)

    def hits(self, fault: str) -> bool:
        """Whether this fault happens to this call."""
        faults = self.faults
        with self._lock:
            self._asked[fault] += 1
            turn = self._asked[fault] - faults.skip
            if turn <= 0 or (faults.count and turn > faults.count):
                return False
            if self._random.random() >= faults.probability:
                return False
            self._injected[fault] += 1
            return True

    def part(self, fault: str, size: int) -> int:
        """How many of ``size`` bytes a read or write takes."""
        share: float = getattr(self.faults, fault)
        if not share or size < 2 or not self.hits(fault):
            return size
        return max(1, int(size * share))

    def bit(self, size: int) -> int | None:
        """Which bit of ``size`` bytes that were read is wrong, or None."""
        if not self.faults.flip_read_bit or not size or not self.hits("flip_read_bit"):
            return None
        with self._lock:
            return self._random.randrange(8 * size)

    def pace(self, size: int) -> None:
        """Wait until ``size`` more bytes may pass."""
        rate = 1e6 * self.faults.bandwidth_mb_s
        if not rate:
            return
        with self._lock:
            begin = max(self._free_at, time.monotonic())
            self._free_at = begin + size / rate
            seconds = self._free_at - time.monotonic()
        self._over.wait(seconds)

    def _wait(self, fault: str, unit_seconds: float) -> None:
        seconds = unit_seconds * getattr(self.faults, fault)
        if not seconds or not self.hits(fault):
            return
        with self._lock:
            self.stalled += 1
        try:
            self._over.wait(seconds)
        finally:
            with self._lock:
                self.stalled -= 1


class Control:
    """The faults in force, replaced from one thread and asked from all."""

    def __init__(self) -> None:
        self._injected: Counter[str] = Counter()
        self.in_force: InForce | None = None  # none: the common case costs one look

    def set(self, settings: Mapping[str, Any]) -> None:
        """Replace the faults. Raises ValueError as ``Faults.of`` does; then the old ones stay."""
        new = InForce(Faults.of(settings), self._injected) if settings else None
        old, self.in_force = self.in_force, new
        if old is not None:
            old.end()

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out ``{"set": faults}`` or ``{"state": ...}``; counts since the start."""
        try:
            if "set" in command:
                self.set(command["set"])
        except ValueError as error:
            return {"error": str(error)}
        force = self.in_force
        return {"injected": dict(self._injected), "stalled": force.stalled if force else 0}

    def meet(self, operation: str, *paths: str) -> None:
        if self.in_force is not None:
            self.in_force.meet(operation, *paths)

    def after(self, operation: str, work: Callable[[], object], *paths: str) -> None:
        """Do the work, then fail it all the same if that is asked for."""
        self.meet(operation, *paths)
        work()
        self.meet(f"{operation}_after", *paths)
