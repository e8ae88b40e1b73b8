"""Counting a shelf for a while for ``ls``, and saying how sure the result is."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvshelf.cli.common import ROOT_HELP, CommandError, Exit, existing_shelf, safe
from kvshelf.cli.units import duration, option
from kvshelf.disk.volume import Volume
from kvshelf.text import age_text, bytes_text
from kvshelf.upkeep.census.census import SHARES, Census, Summary
from kvshelf.upkeep.census.estimate import CONFIDENCE, Estimate

# How often a terminal sees a better estimate.
_REDRAW_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help=ROOT_HELP)
    parser.add_argument("--exact", action="store_true", help="count everything, however long")
    for_help = "estimate from what can be counted in so long"
    option(parser, "--for", duration("0s", "366d"), for_help, "2s", dest="seconds")


def counted(
    options: argparse.Namespace, show: Callable[[Path, Census], list[str]]
) -> tuple[Path, Census]:
    """A census, refined until it is exact or time is over.

    Args:
        show: lines for a terminal, which sees them at once and is shown better ones meanwhile.
    """
    root = existing_shelf(options.root)
    end = math.inf if options.exact else time.monotonic() + options.seconds
    try:
        census = Census(root)
    except OSError as error:
        raise CommandError(Exit.NO_SHELF, f"{options.root}: {error.strerror}") from error
    live = sys.stdout.isatty() and not options.json
    drawn = 0
    while True:
        census.refine(max(0.0, min(_REDRAW_SECONDS, end - time.monotonic())))
        if census.is_complete or time.monotonic() >= end:
            break
        if live:
            drawn = _draw(show(root, census), drawn)
    if not options.json:
        _draw(show(root, census), drawn)
    return root, census


def _draw(lines: list[str], above: int) -> int:
    """Print lines over those that were printed before; how many there are now."""
    if above:
        print(f"\x1b[{above}A\x1b[J", end="")
    print("\n".join(lines), flush=True)
    return len(lines)


def sureness(census: Census, total: Summary) -> str:
    """The line under a table that says how much to trust it."""
    if census.exact:
        return "exact"
    if census.unread.count:
        return (
            f"too little: {census.unread.count} could not be read, as {safe(census.unread.example)}"
        )
    return (
        f"estimated from {census.seen} of {census.folders} folders; with {CONFIDENCE:.0%} "
        f"confidence the total is {bytes_text(total.bytes.value)} +-{_percent(total.bytes)}, "
        f"{total.chunks.value:,.0f} files +-{_percent(total.chunks)}; --exact counts all"
    )


def count_text(estimate: Estimate) -> str:
    return f"{'~' if estimate.error else ''}{estimate.value:,.0f}"


def size_text(estimate: Estimate) -> str:
    return f"{'~' if estimate.error else ''}{bytes_text(estimate.value)}"


def ages_text(ages: tuple[float | None, ...]) -> str:
    """The youngest tenth, the middle and the oldest tenth."""
    return " / ".join(map(age_text, ages))


def summary_json(summary: Summary) -> dict[str, Any]:
    return {
        "files": summary.chunks.to_json(),
        "bytes": summary.bytes.to_json(),
        "stored_seconds_ago": ages_json(summary.stored),
        "used_seconds_ago": ages_json(summary.used),
    }


def census_json(census: Census) -> dict[str, Any]:
    return {
        "exact": census.exact,
        "unread": census.unread.count,
        "unread_example": census.unread.example,
        "confidence": CONFIDENCE,
        "folders": census.folders,
        "folders_counted": census.seen,
    }


def volume_json(volume: Volume) -> dict[str, int | None]:
    """Of the file system, for anybody's use; None for what it does not count."""
    bytes_known, inodes_known = volume.counts_bytes, volume.counts_inodes
    return {
        "free_bytes": volume.free_bytes if bytes_known else None,
        "size_bytes": volume.size_bytes if bytes_known else None,
        "used_percent": volume.used_percent,
        "free_inodes": volume.free_inodes if inodes_known else None,
        "used_inode_percent": volume.used_inode_percent,
    }


def ages_json(ages: tuple[float | None, ...]) -> dict[str, float | None]:
    values = [None if age is None else round(age) for age in ages]
    return {f"p{share * 100:.0f}": value for share, value in zip(SHARES, values, strict=True)}


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.error / estimate.value:.1f}%" if estimate.value else "?"
