"""Values of options: one way to write a size and a duration, in all commands. Pure."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

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


def size(text: str) -> int:
    """A number of bytes.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        allowed = "allowed is a number of bytes, or one such as 500GB"
        raise argparse.ArgumentTypeError(f"{text!r}: {allowed}")
    found = float(match[1]) * _BYTES[match[2]]
    if found >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a number of bytes below 8 EiB")
    return int(found)


def size_in(low: str, high: str) -> Callable[[str], int]:
    """Reads sizes from ``low`` to ``high``."""
    least, most = size(low), size(high)

    def parse(text: str) -> int:
        found = size(text)
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: allowed is a size from {low} to {high}")
        return found

    return parse


def duration(low: str, high: str) -> Callable[[str], float]:
    """Reads durations from ``low`` to ``high``, in seconds."""
    least, most = _seconds(low), _seconds(high)

    def parse(text: str) -> float:
        found = _seconds(text)
        if not least <= found <= most:  # never true of NaN
            allowed = f"allowed is a duration from {low} to {high}, such as 30s or 6h"
            raise argparse.ArgumentTypeError(f"{text!r}: {allowed}")
        return found

    return parse


def _seconds(text: str) -> float:
    """NaN if it is no duration."""
    match = _DURATION.fullmatch(text.strip())
    return float(match[1]) * _SECONDS[match[2]] if match else math.nan


def number(low: float, high: float) -> Callable[[str], float]:
    """Reads numbers from ``low`` to ``high``."""

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not low <= found <= high:
            allowed = f"allowed is a number from {low:,g} to {high:,g}"
            raise argparse.ArgumentTypeError(f"{text!r}: {allowed}")
        return found

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        found = int(text) if text.isascii() and text.isdecimal() else low - 1
        if not low <= found <= high:
            allowed = f"allowed is a whole number from {low:,} to {high:,}"
            raise argparse.ArgumentTypeError(f"{text!r}: {allowed}")
        return found

    return parse
