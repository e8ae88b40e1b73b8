"""What all commands share: exit statuses, errors, and text that is safe to print."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from kvshelf.disk.deadline import NoAnswerError, within
from kvshelf.disk.layout import MARKER
from kvshelf.disk.leftovers import remove_dead_scratch
from kvshelf.disk.mend import mend_owners
from kvshelf.disk.proof import has_lost_marker
from kvshelf.disk.root import (
    NamespaceEntry,
    check_root,
    is_utf8,
    list_namespaces,
    publish_marker,
)
from kvshelf.errors import NotAShelfError

T = TypeVar("T")


class Exit(IntEnum):
    """Exit statuses of every command; ``EXIT_HELP`` says them to users."""

    FINE = 0
    FINDINGS = 1
    USAGE = 2
    NO_SHELF = 10
    NO_RESOURCES = 11
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    CLOSED_PIPE = 141  # 128 + SIGPIPE


EXIT_HELP = """\
exit status:
  0   fine
  1   differences or findings
  2   wrong usage
  10  no such root, or no answer from its mount within 30 s
  11  the system gives no thread or no memory
  130 interrupted
  141 broken pipe
"""


ROOT_HELP = "a root of a shelf: a directory that holds namespaces"


class CommandError(Exception):
    """Ends the command with a message on stderr.

    Attributes:
        status: the exit status.
    """

    def __init__(self, status: Exit, message: str) -> None:
        super().__init__(message)
        self.status = status


# Names of what was mended, in a line.
_MENDED_MAX = 8
# A mount that does not answer for so long is said to hang.
ANSWER_SECONDS = 30.0


def asked(path: str, look: Callable[[], T]) -> T:
    """What a first look at a path says.

    Raises:
        CommandError: it does not answer.
    """
    try:
        return within(ANSWER_SECONDS, look)
    except NoAnswerError as error:
        message = f"{safe(path)}: {error}: its mount hangs"
        raise CommandError(Exit.NO_SHELF, message) from error


def end_signals() -> list[signal.Signals]:
    """Signals beside Ctrl-C's that end a command in order; one that is ignored, as SIGHUP under
    nohup(1), stays so."""
    asked_to = (signal.SIGTERM, signal.SIGHUP)
    return [number for number in asked_to if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """``end_signals`` end what is within as Ctrl-C does: what it made is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {each: signal.signal(each, signal.default_int_handler) for each in end_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def check_path(path: str) -> None:
    """
    Raises:
        CommandError: no shelf can ever be at a ROOT that is written so.
    """
    if not path:
        raise CommandError(Exit.USAGE, "ROOT is empty: is a variable not set?")
    if not is_utf8(path):
        raise CommandError(Exit.USAGE, f"{safe(path)}: not UTF-8: a shelf's path must be UTF-8")


def existing_shelf(path: str) -> Path:
    """The shelf at a path that a user gave. Writes nothing.

    Raises:
        CommandError: there is none, or it does not answer.
    """
    check_path(path)
    return asked(path, lambda: _existing_shelf(path))


def prepared_shelf(path: str) -> Path:
    """The shelf at a path, for a command that deletes: with a marker, if a purge took it of a shelf
    in use; without what a killed ``bench`` left; and, for the superuser, with its owners mended.

    Raises:
        CommandError: there is none, or it does not answer.
    """
    root = existing_shelf(path)
    for mended in asked(path, lambda: _prepare(root)):
        print(f"kvshelf: {safe(mended)}", file=sys.stderr, flush=True)
    return root


def _prepare(root: Path) -> list[str]:
    lines = []
    try:
        if not os.path.lexists(root / MARKER):
            if not has_lost_marker(root, in_use=True):
                text = f"{root} has no {MARKER}: nothing is deleted there; an engine makes it again"
                raise CommandError(Exit.NO_SHELF, text)
            publish_marker(root)
            lines.append(f"{root}: made {MARKER} again: something had removed it")
        mended = mend_owners(root)
    except (OSError, NotAShelfError) as error:
        raise CommandError(Exit.NO_SHELF, f"{root}: {error}") from error
    if mended:
        shown = ", ".join(mended[:_MENDED_MAX])
        lines.append(f"{root}: gave {len(mended)} files and folders to the root's owner: {shown}")
    remove_dead_scratch(root)
    return lines


def listed_namespaces(path: str) -> tuple[Path, list[NamespaceEntry]]:
    """The shelf at a path that a user gave, and its namespaces.

    Raises:
        CommandError: there is none, or it cannot be listed.
    """
    root = existing_shelf(path)
    try:
        return root, list_namespaces(root)
    except OSError as error:
        raise CommandError(Exit.NO_SHELF, f"{path}: {error.strerror}") from error


def _existing_shelf(path: str) -> Path:
    root = Path(path)
    try:
        check_root(root)
    except NotAShelfError as error:
        raise CommandError(Exit.NO_SHELF, str(error)) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        if _has_lost_marker(root):
            return root
        reason = "has no kvshelf.json, so it is no shelf" if root.is_dir() else "is no directory"
        raise CommandError(Exit.NO_SHELF, f"{path} {reason}") from error
    except (OSError, ValueError) as error:
        raise CommandError(Exit.NO_SHELF, f"{path}: {error}") from error
    return root


def _has_lost_marker(root: Path) -> bool:
    try:
        return not os.path.lexists(root / MARKER) and has_lost_marker(root)
    except OSError:
        return False


def safe(text: str) -> str:
    """Text of a shared directory as a terminal may have it: control characters as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def shortened(names: Sequence[str], most: int = 20) -> str:
    """A list for a message, one name a line, cut after ``most``."""
    lines = [f"  {safe(name)}" for name in names[:most]]
    if len(names) > most:
        lines.append(f"  ... and {len(names) - most} more")
    return "\n".join(lines)


def cut(text: str, most: int = 160) -> str:
    """Text that fits a wide terminal; ``--json`` is complete."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def table_lines(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Columns as wide as their longest text; the first row is the head.

    Args:
        right: indices of columns that end together, as numbers do.
    """
    columns = []
    for index, column in enumerate(zip(*rows, strict=True)):
        width, align = max(map(len, column)), str.rjust if index in right else str.ljust
        columns.append([align(cell, width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def print_json(name: str, value: Mapping[str, Any], *, lines: bool = False) -> None:
    """Print a document of the reference, in ASCII, so that it is the same in every locale; with
    ``lines`` in one line, at once."""
    print(json.dumps({"document": name, **value}, indent=None if lines else 1), flush=lines)
