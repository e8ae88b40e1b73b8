"""Options with a value: one way to write a size and a duration, in all commands. Pure."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UNITS_HELP = """\
SIZE is a number of bytes, or one with a unit: 500kB, 10GB (10^9), 512MiB (2^20), 1.5TB.
DURATION is a number of seconds, or one with a unit: 500ms, 30s, 10m, 6h, 7d.
"""
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(|[kKMGTP]i?)B?")
_BYTES = {"": 1} | {
    f"{letter}{binary}": base**power
    for power, letters in enumerate(("kK", "M", "G", "T", "P"), 1)
    for letter in letters
    for binary, base in (("", 1000), ("i", 1024))
}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(|ms|s|m|h|d)")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads an option's value, and has a word for it in the help."""

    metavar: str
    read: Callable[[str], Any]

    def __call__(self, text: str) -> Any:
        return self.read(text)


def option(
    parser: argparse._ActionsContainer,
    name: str,
    reader: Reader,
    help_text: str,
    default: object = None,
    **more: Any,
) -> None:
    """Add an option with a value. Its help ends with the default, if there is one."""
    help_text += "" if default is None else " (default: %(default)s)"
    metavar = reader.metavar
    parser.add_argument(name, type=reader, metavar=metavar, default=default, help=help_text, **more)


def size(text: str) -> int:
    """A number of bytes.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise _refused(text, "a number of bytes, or one such as 500GB")
    found = float(match[1]) * _BYTES[match[2]]
    if found >= 1 << 63:
        raise _refused(text, "a number of bytes below 8 EiB")
    return int(found)


SIZE = Reader("SIZE", size)


def size_in(low: str, high: str) -> Reader:
    return _between("SIZE", size, size(low), size(high), f"a size from {low} to {high}")


def duration(low: str, high: str) -> Reader:
    """Reads durations from ``low`` to ``high``, in seconds."""
    allowed = f"a duration from {low} to {high}, such as 30s or 6h"
    return _between("DURATION", _seconds, _seconds(low), _seconds(high), allowed)


def number(low: float, high: float, metavar: str = "N") -> Reader:
    return _between(metavar, _float, low, high, f"a number from {low:,g} to {high:,g}")


def whole(low: int, high: int, metavar: str = "N") -> Reader:
    return _between(metavar, _int, low, high, f"a whole number from {low:,} to {high:,}")


def _between(
    metavar: str, read: Callable[[str], float], low: float, high: float, allowed: str
) -> Reader:
    def parse(text: str) -> float:
        found = read(text)
        if not low <= found <= high:  # never true of NaN
            raise _refused(text, allowed)
        return found

    return Reader(metavar, parse)


def _seconds(text: str) -> float:
    """NaN if it is no duration; so below."""
    match = _DURATION.fullmatch(text.strip())
    return float(match[1]) * _SECONDS[match[2]] if match else math.nan


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _int(text: str) -> float:
    return int(text) if text.isascii() and text.isdecimal() else math.nan


def _refused(text: str, allowed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r}: allowed is {allowed}")
