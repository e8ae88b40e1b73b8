"""The options of ``kvshelf evict``: read, checked, and judged against the volume."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from kvshelf.cli.common import (
    ROOT_HELP,
    CommandError,
    Exit,
    asked,
    ended_as_by_ctrl_c,
    safe,
)
from kvshelf.cli.units import SIZE, Reader, duration, number, option, size, whole
from kvshelf.disk.volume import ZERO_OF_ZERO, Volume, volume_of
from kvshelf.errors import ConfigError
from kvshelf.upkeep.evict.effect import unkept
from kvshelf.upkeep.evict.limits import Limits

DEFAULT_PERCENT = 90.0
_PERCENT = number(1, 100, "P")
# CephFS says 0 of 0 until its monitors have answered: a few seconds. Other mounts say so always.
COUNT_SECONDS = 30.0
_LOOK_SECONDS = 0.25


# Limits by the names that users give them here.
OPTIONS = {
    "shelf_bytes": "--shelf-limit",
    "namespace_bytes": "--namespace-limit",
    "namespace_bytes_of": "--namespace-limit",
    "volume_percent": "--volume-percent",
    "inode_percent": "--inode-percent",
    "stores_failed": "room for stores",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("root", metavar="ROOT", help=ROOT_HELP)
    option(parser, "--shelf-limit", SIZE, "bytes of all chunks together")
    option(parser, "--volume-percent", _PERCENT, "of the file system that may be used")
    option(parser, "--inode-percent", _PERCENT, "of its inodes that may be used")
    option(
        parser,
        "--namespace-limit",
        Reader("[NAME=]SIZE", _namespace_limit),
        "bytes of each namespace's chunks, or of those whose folder begins with NAME",
        action="append",
    )
    low_help = "percent of a limit down to which chunks go"
    option(parser, "--low-water", _PERCENT, low_help, "95")
    keep_help = "of the file system: below that, others' data does not shrink the shelf"
    option(parser, "--keep-percent", number(0, 100, "P"), keep_help, "10")
    _add_pace(parser)
    add("--once", action="store_true", help="end when there is nothing to do")
    add("--dry-run", action="store_true", help="remove nothing, say what would go (with --once)")
    add("--metrics-port", metavar="PORT", type=int, help="answer /metrics and /healthz there")


def _add_pace(parser: argparse.ArgumentParser) -> None:
    rate_help = "most files that are looked at or removed; 0: no limit"
    option(parser, "--max-files-per-second", number(0, 1e9), rate_help, "50000", dest="rate")
    option(parser, "--threads", whole(1, 64), "that look at files", 4)
    option(parser, "--every", duration("1ms", "1d"), "between two looks", "1s", dest="interval")
    lease_help = "another follows an evictor that has ended after so long"
    option(parser, "--lease", duration("1s", "1h"), lease_help, "15s", dest="lease_seconds")
    settle_help = "the file system may show so late what was removed"
    option(parser, "--settle", duration("0s", "1h"), settle_help, "40s", dest="settle_seconds")


def _namespace_limit(text: str) -> tuple[str, int]:
    name, equals, limit = text.rpartition("=")
    if equals and not name:
        raise argparse.ArgumentTypeError(f"{text!r}: a name before the =, or a SIZE alone")
    return name, size(limit)


def limits_of(options: argparse.Namespace, root: Path) -> Limits:
    """The limits that are given, all of which can be kept on this volume.

    Raises:
        CommandError: a limit is out of range, or cannot be kept.
    """
    try:
        limits = _given(options)
    except ConfigError as error:
        name = OPTIONS.get(error.setting, error.setting)
        raise CommandError(Exit.USAGE, f"{name} {error.value}: {error.allowed}") from error
    limits = _kept(options, limits, root)
    _warn_of_names(root, limits)
    return limits


def _kept(options: argparse.Namespace, limits: Limits, root: Path) -> Limits:
    """Without the default limits that this volume does not count; an error if it is a given one."""
    volume = counted_volume(root, limits)
    for name, reason in unkept(limits, volume).items():
        given = f"{OPTIONS[name]} {getattr(limits, name):g}"
        text = f"{given}: limits nothing on {safe(str(root))}: {reason}"
        if getattr(options, name) is not None or name == "volume_percent":
            raise CommandError(Exit.USAGE, f"{text}; allowed here: --shelf-limit SIZE")
        print(f"kvshelf: {text}", file=sys.stderr, flush=True)
        limits = replace(limits, inode_percent=None)
    if limits.volume_percent is not None and volume.doubt:
        print(f"kvshelf: {safe(str(root))}: {volume.doubt}", file=sys.stderr, flush=True)
    return limits


def _given(options: argparse.Namespace) -> Limits:
    given = options.namespace_limit or []
    of_one = {name: limit for name, limit in given if name}
    of_each = [limit for name, limit in given if not name]
    limits = Limits(
        shelf_bytes=options.shelf_limit,
        volume_percent=options.volume_percent,
        inode_percent=options.inode_percent,
        namespace_bytes=of_each[-1] if of_each else None,
        namespace_bytes_of=of_one,
        low_percent=options.low_water,
        keep_percent=options.keep_percent,
    )
    if limits:
        return limits
    return replace(limits, volume_percent=DEFAULT_PERCENT, inode_percent=DEFAULT_PERCENT)


def _warn_of_names(root: Path, limits: Limits) -> None:
    """A namespace may come later; a name that is misspelt limits nothing, ever."""
    try:
        folders = os.listdir(root)  # noqa: PTH208 - names are all that is needed
    except OSError:
        return  # the evictor says so
    for name in limits.namespace_bytes_of:
        if not any(folder.startswith(name) for folder in folders):
            text = f"--namespace-limit {name}: no namespace here begins so; it limits nothing yet"
            print(f"kvshelf: {safe(text)}", file=sys.stderr, flush=True)


def counted_volume(root: Path, limits: Limits) -> Volume:
    """The file system of a root. If a limit needs its numbers and statvfs says 0 of 0 bytes, wait
    for them ``COUNT_SECONDS`` at most, and say so once.

    Raises:
        CommandError: it does not answer.
    """
    is_wanted = limits.volume_percent is not None or limits.inode_percent is not None
    volume = _volume_of(root)
    if not is_wanted or volume.bytes_unknown != ZERO_OF_ZERO:
        return volume
    text = f"{ZERO_OF_ZERO}: waits {COUNT_SECONDS:g} s at most for the volume's numbers"
    end = time.monotonic() + COUNT_SECONDS
    with ended_as_by_ctrl_c():
        print(f"kvshelf: {safe(str(root))}: {text}", file=sys.stderr, flush=True)
        while volume.bytes_unknown == ZERO_OF_ZERO and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            volume = _volume_of(root)
    return volume


def _volume_of(root: Path) -> Volume:
    try:
        return asked(str(root), lambda: volume_of(root))
    except OSError as error:
        raise CommandError(Exit.NO_SHELF, f"{safe(str(root))}: {error.strerror}") from error
