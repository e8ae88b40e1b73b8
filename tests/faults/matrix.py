"""The fault matrix as data: every call x every fault x every kind of job, and what must come of it.

``classify`` says of each combination either why it cannot be or makes no difference (an exclusion,
by name) or what must happen (``Outcome``). ``cells`` runs it; docs/dev/faults.md shows it. Pure.

A call is an operation on a target: the same system call on a chunk, its temp file or its folder
fails in different ways.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

JOBS = ("load", "store", "store-through", "lookup", "touch", "probe")
STORES = ("store", "store-through")
OPERATIONS = (
    *("open", "stat", "fstat", "read", "write", "allocate", "fsync", "rename", "link"),
    *("plain rename", "mkdir", "unlink", "utimens", "close"),
)
TARGETS = (
    *("chunk", "chunk ahead", "chunk again", "header", "payload"),
    *("temp file", "failed temp file", "linked temp file", "folder", "temp folder"),
)
ERRORS = ("EIO", "ESTALE", "ENOSPC", "EACCES", "ENOENT", "EEXIST", "EINTR")
FAULTS = (
    *ERRORS,
    *("done, but EIO", "short", "bit flip", "torn", "swapped", "stale namespace", "hang"),
)
CHUNKS = ("one", "many")
TIMES = ("once", "always")
DURABILITIES = ("none", "data", "full")

# Which calls a job makes, and when: plain, or only under the condition that a cell then sets up.
_LOAD = {
    ("open", "chunk"): "",
    ("fstat", "chunk"): "",
    ("read", "header"): "",
    ("read", "payload"): "",
    ("close", "chunk"): "",
    ("open", "folder"): "damaged",
    ("stat", "chunk"): "damaged",
    ("unlink", "chunk"): "damaged",
    ("close", "folder"): "damaged",
}
_STORE = {
    ("stat", "chunk"): "",
    ("open", "temp folder"): "",
    ("mkdir", "temp folder"): "no temp folder",
    ("open", "temp file"): "",
    ("allocate", "temp file"): "",
    ("write", "payload"): "",
    ("write", "header"): "",
    ("open", "folder"): "",
    ("mkdir", "folder"): "",
    ("rename", "chunk"): "",
    ("close", "folder"): "",
    ("close", "temp file"): "",
    ("close", "temp folder"): "",
    ("unlink", "failed temp file"): "write error",
    ("link", "chunk"): "no renameat2",
    ("unlink", "linked temp file"): "no renameat2",
    ("stat", "chunk again"): "no links",
    ("plain rename", "chunk"): "no links",
}
SYNCS = {"data": ("temp file",), "full": ("temp file", "folder")}
_PROBE = {
    ("open", "chunk"): "",
    ("fstat", "chunk"): "",
    ("read", "header"): "",
    ("close", "chunk"): "",
}
_LOOK = {("open", "folder"): "", ("stat", "chunk"): "", ("close", "folder"): ""}
CALLS: dict[str, dict[tuple[str, str], str]] = {
    "load": _LOAD,
    "store": _STORE | {("stat", "chunk ahead"): "folder"},
    "store-through": _STORE,
    "lookup": _LOOK,
    "touch": _LOOK | {("utimens", "chunk"): ""},
    "probe": _PROBE,
}
# Made before a name is claimed: what fails or hangs here is never published.
_BEFORE_PUBLICATION = {
    ("stat", "chunk"),
    ("open", "temp folder"),
    ("mkdir", "temp folder"),
    ("open", "temp file"),
    ("allocate", "temp file"),
    ("write", "payload"),
    ("write", "header"),
    ("fsync", "temp file"),
    ("close", "temp file"),
}
_MAKE_A_NAME = ({"open"}, "temp file"), ({"rename", "link"}, "chunk"), ({"mkdir"}, None)
_CHANGE_NAMES = {"rename", "link", "plain rename", "mkdir", "unlink"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination. ``condition``: what is set up before, see CALLS."""

    job: str
    operation: str
    target: str
    fault: str
    chunks: str
    times: str
    durability: str

    @property
    def condition(self) -> str:
        return CALLS[self.job].get((self.operation, self.target), "")

    def __str__(self) -> str:
        words = (self.job, self.operation, self.target, self.fault, self.chunks, self.times)
        return ", ".join((*words, self.durability))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job must report of the chunk that met the fault, and what it leaves behind.

    Attributes:
        status: of the chunk, a name of FileStatus. Touches report nothing: OK if the time was
            renewed, else NOT_RENEWED.
        error: the errno in the report, 0 if there is none.
        retried: whether the engine makes the call again, unasked.
        later: what a load says afterwards, when nothing fails any more: OK (whole), NOT_FOUND, or
            a status that shows that damage was noticed and the file removed.
        removed: whether the job itself has removed the file as bad, and counted that.
        temp_left: whether a temp file stays, for a cleaner.
    """

    status: str
    error: int = 0
    retried: bool = False
    later: str = "OK"
    removed: bool = False
    temp_left: bool = False


def is_called(cell: Cell) -> bool:
    """Whether the job makes this call on this target."""
    call = (cell.operation, cell.target)
    if cell.operation == "fsync":
        return cell.job in STORES and cell.target in SYNCS.get(cell.durability, ())
    return call in CALLS[cell.job]


def excluded(cell: Cell) -> str | None:
    """The rule by which this combination is no cell, or None."""
    call = (cell.operation, cell.target)
    fault, operation = cell.fault, cell.operation
    makes_a_name = any(
        operation in names and target in (None, cell.target) for names, target in _MAKE_A_NAME
    )
    astray = call in {("open", "chunk"), ("stat", "chunk")} and cell.condition == ""
    rules = {
        "the job never makes this call": not is_called(cell),
        "durability decides about fsync alone": cell.durability != "none" and operation != "fsync",
        "only a call that makes a name finds it taken": fault == "EEXIST" and not makes_a_name,
        "only a change of names is done and denied": fault == "done, but EIO"
        and operation not in _CHANGE_NAMES,
        "only transfers are short": fault == "short" and operation not in ("read", "write"),
        "only transfers carry bits": fault == "bit flip" and operation not in ("read", "write"),
        "only writes are torn": fault == "torn" and operation != "write",
        "only a chunk's name leads astray": fault in ("swapped", "stale namespace") and not astray,
        "a wrong file stays wrong": fault in ("swapped", "stale namespace")
        and cell.times == "once",
        "a call that is always interrupted hangs": fault == "EINTR" and cell.times == "always",
        "what is done is done once": fault == "done, but EIO" and cell.times == "always",
        "a call hangs once": fault == "hang" and cell.times == "always",
    }
    return next((rule for rule, holds in rules.items() if holds), None)


def classify(cell: Cell) -> str | Outcome:
    """The rule that excludes it, or what must happen."""
    rule = excluded(cell)
    return rule if rule is not None else _OUTCOMES[cell.job](cell)


def every_combination() -> Iterator[Cell]:
    dimensions = (JOBS, OPERATIONS, TARGETS, FAULTS, CHUNKS, TIMES, DURABILITIES)
    return (Cell(*values) for values in itertools.product(*dimensions))


def every_cell() -> Iterator[tuple[Cell, Outcome]]:
    for cell in every_combination():
        found = classify(cell)
        if isinstance(found, Outcome):
            yield cell, found


def _number(fault: str) -> int:
    return int(getattr(errno, fault))


def _failed(fault: str) -> Outcome:
    """An error of a call that a reader needs: a file that is gone is a miss."""
    if fault == "EINTR":
        return Outcome("OK", retried=True)
    if fault in ("ENOENT", "ESTALE"):
        return Outcome("NOT_FOUND")
    return Outcome("IO_ERROR", _number(fault))


def _load(cell: Cell) -> Outcome:
    fault = cell.fault
    if cell.condition == "damaged":
        return _load_of_damage(cell)
    if fault == "hang":
        return Outcome("TIMED_OUT")
    if fault in ("swapped", "stale namespace"):
        return Outcome("FOREIGN", later="NOT_FOUND", removed=True)
    if fault == "bit flip":  # of what was read: the engine cannot know that the file is sound
        return Outcome("CORRUPT", later="NOT_FOUND", removed=True)
    if fault == "short":
        return Outcome("OK", retried=True)
    if cell.operation == "close":
        return Outcome("OK")
    return _failed(fault)


def _load_of_damage(cell: Cell) -> Outcome:
    """The damage is noticed; what can fail is the removal."""
    if cell.fault == "hang":
        return Outcome("TIMED_OUT", later="NOT_FOUND")  # removed when the call comes back
    if cell.fault == "EINTR" or cell.operation == "close":
        retried = cell.operation != "close"
        return Outcome("CORRUPT", retried=retried, later="NOT_FOUND", removed=True)
    if cell.fault == "done, but EIO":
        return Outcome("CORRUPT", later="NOT_FOUND")
    return Outcome("CORRUPT", later="CORRUPT")


def _store(cell: Cell) -> Outcome:
    call, fault = (cell.operation, cell.target), cell.fault
    if fault in ("swapped", "stale namespace"):  # what has the name is looked into
        return Outcome("OK", removed=True)
    if call == ("stat", "chunk ahead"):  # a hint that saves work, no more
        return Outcome("OK", retried=fault == "EINTR")
    if cell.target == "failed temp file":
        return _store_that_failed(cell)
    if fault == "hang":
        return Outcome("TIMED_OUT", later="NOT_FOUND" if call in _BEFORE_PUBLICATION else "OK")
    if call == ("close", "temp file") and fault != "done, but EIO":
        # Only now may storage say that a write has failed, so a chunk gets its name after it.
        return Outcome("IO_ERROR", _number(fault), later="NOT_FOUND")
    if fault in ("EINTR", "short"):
        # Linux has closed the file all the same; what follows must not touch the number again.
        return Outcome("OK", retried=cell.operation != "close")
    if fault in ("bit flip", "torn"):
        return Outcome("OK", later="CORRUPT")
    if fault == "done, but EIO":
        if cell.operation == "unlink":
            return Outcome("OK")
        published = cell.target == "chunk"
        return Outcome("IO_ERROR", errno.EIO, later="OK" if published else "NOT_FOUND")
    return _store_error(cell)


def _store_error(cell: Cell) -> Outcome:
    call, fault = (cell.operation, cell.target), cell.fault
    fails = Outcome("IO_ERROR", _number(fault), later="NOT_FOUND")
    if call == ("stat", "chunk") or cell.operation == "close":
        return Outcome("OK")
    if call == ("allocate", "temp file"):
        return fails if fault == "ENOSPC" else Outcome("OK")
    if call == ("unlink", "linked temp file"):
        return Outcome("OK", temp_left=True)
    if call == ("fsync", "folder"):
        return Outcome("IO_ERROR", _number(fault))
    if fault == "EEXIST" and cell.operation in ("rename", "link"):
        if cell.times == "once":  # whoever had the name has removed it since
            return Outcome("OK", retried=True)
        return Outcome("NOT_FOUND", retried=True, later="NOT_FOUND")
    if call == ("stat", "chunk again") and fault == "ENOENT":
        return Outcome("OK")
    if fault in ("ENOENT", "EEXIST") and call not in {
        ("write", "payload"),
        ("write", "header"),
        ("fsync", "temp file"),
    }:
        if cell.times == "once":  # somebody removed a folder, or had the temp file's name
            return Outcome("OK", retried=True)
        if cell.operation == "mkdir":
            return Outcome("IO_ERROR", errno.ENOENT, retried=True, later="NOT_FOUND")
        return Outcome("IO_ERROR", _number(fault), retried=True, later="NOT_FOUND")
    return fails


def _store_that_failed(cell: Cell) -> Outcome:
    """Its write failed; what can fail besides is the removal of its temp file."""
    if cell.fault == "hang":
        return Outcome("TIMED_OUT", later="NOT_FOUND")
    gone = cell.fault in ("EINTR", "done, but EIO")
    retried = cell.fault == "EINTR"
    return Outcome("IO_ERROR", errno.EIO, retried, later="NOT_FOUND", temp_left=not gone)


def _lookup(cell: Cell) -> Outcome:
    if cell.fault == "hang":
        return Outcome("TIMED_OUT")
    if cell.fault in ("swapped", "stale namespace"):  # a load finds out
        return Outcome("OK", later="FOREIGN")
    if cell.operation == "close":
        return Outcome("OK")
    return _failed(cell.fault)


def _touch(cell: Cell) -> Outcome:
    if cell.fault in ("swapped", "stale namespace"):
        return Outcome("OK", later="FOREIGN")
    if cell.operation == "close":
        return Outcome("OK")
    return Outcome("OK", retried=True) if cell.fault == "EINTR" else Outcome("NOT_RENEWED")


def _probe(cell: Cell) -> Outcome:
    if cell.fault == "hang":
        return Outcome("TIMED_OUT")
    if cell.fault in ("swapped", "stale namespace"):  # nobody sees what was read
        return Outcome("OK", later="FOREIGN")
    if cell.fault == "short":
        return Outcome("OK", retried=True)
    if cell.fault == "bit flip" or cell.operation == "close":
        return Outcome("OK")
    return _failed(cell.fault)


_OUTCOMES = {
    "load": _load,
    "store": _store,
    "store-through": _store,
    "lookup": _lookup,
    "touch": _touch,
    "probe": _probe,
}
