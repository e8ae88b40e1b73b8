"""The options of ``kvshelf evict``: read, checked, and judged against the volume."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvshelf.cli.common import ROOT_HELP, CommandError, Exit, safe
from kvshelf.cli.evict_volume import counted_volume
from kvshelf.cli.units import duration, number, size, whole
from kvshelf.errors import ConfigError

if TYPE_CHECKING:
    from kvshelf.upkeep.evict import Limits

DEFAULT_PERCENT = 90.0

# Limits by the names that users give them here.
OPTIONS = {
    "shelf_bytes": "--shelf-limit",
    "namespace_bytes": "--namespace-limit",
    "namespace_bytes_of": "--namespace-limit",
    "volume_percent": "--volume-percent",
    "inode_percent": "--inode-percent",
    "stores_failed": "room for stores",
    "low_percent": "--low-water",
    "keep_percent": "--keep-percent",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("root", metavar="ROOT", help=ROOT_HELP)
    add("--shelf-limit", metavar="SIZE", type=size, help="bytes of all chunks together")
    add("--volume-percent", metavar="P", type=float, help="of the file system that may be used")
    add("--inode-percent", metavar="P", type=float, help="of its inodes that may be used")
    add(
        "--namespace-limit",
        metavar="[NAME=]SIZE",
        type=_namespace_limit,
        action="append",
        default=[],
        help="bytes of each namespace's chunks, or of those whose folder begins with NAME",
    )
    add(
        "--low-water",
        metavar="P",
        type=float,
        default=95.0,
        help="percent of a limit down to which chunks go (default: %(default)g)",
    )
    add(
        "--keep-percent",
        metavar="P",
        type=float,
        default=10.0,
        help="of the file system: below that, others' data does not shrink the shelf "
        "(default: %(default)g)",
    )
    _add_pace(parser)
    add("--once", action="store_true", help="end when there is nothing to do")
    add("--dry-run", action="store_true", help="remove nothing, say what would go (with --once)")
    add("--metrics-port", metavar="PORT", type=int, help="answer /metrics and /healthz there")


def _add_pace(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--max-files-per-second",
        dest="rate",
        metavar="N",
        type=number(0, 1e9),
        default=50_000.0,
        help="most files that are looked at or removed; 0: no limit (default: %(default)g)",
    )
    add(
        "--threads",
        metavar="N",
        type=whole(1, 64),
        default=4,
        help="that look at files (default: %(default)s)",
    )
    add(
        "--every",
        dest="interval",
        metavar="DURATION",
        type=duration("1ms", "1d"),
        default="1s",
        help="between two looks (default: %(default)s)",
    )
    add(
        "--lease",
        dest="lease_seconds",
        metavar="DURATION",
        type=duration("1s", "1h"),
        default="15s",
        help="another follows an evictor that has ended after so long (default: %(default)s)",
    )
    add(
        "--settle",
        dest="settle_seconds",
        metavar="DURATION",
        type=duration("0s", "1h"),
        default="40s",
        help="the file system may show so late what was removed (default: %(default)s)",
    )


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
        option = OPTIONS.get(error.setting, error.setting)
        raise CommandError(Exit.USAGE, f"{option} {error.value}: {error.allowed}") from error
    limits = _kept(options, limits, root)
    _warn_of_names(root, limits)
    return limits


def _kept(options: argparse.Namespace, limits: Limits, root: Path) -> Limits:
    """Without the default limits that this volume does not count; an error if it is a given one."""
    from kvshelf.upkeep.evict.effect import unkept  # noqa: PLC0415

    volume = counted_volume(root, limits)
    for name, reason in unkept(limits, volume).items():
        option, percent = OPTIONS[name], getattr(limits, name)
        text = f"{option} {percent:g}: limits nothing on {safe(str(root))}: {reason}"
        if getattr(options, name) is not None or name == "volume_percent":
            raise CommandError(Exit.USAGE, f"{text}; allowed here: --shelf-limit SIZE")
        print(f"kvshelf: {text}", file=sys.stderr, flush=True)
        limits = replace(limits, inode_percent=None)
    if limits.volume_percent is not None and volume.doubt:
        print(f"kvshelf: {safe(str(root))}: {volume.doubt}", file=sys.stderr, flush=True)
    return limits


def _given(options: argparse.Namespace) -> Limits:
    from kvshelf.upkeep.evict import Limits  # noqa: PLC0415

    of_one = {name: limit for name, limit in options.namespace_limit if name}
    of_each = [limit for name, limit in options.namespace_limit if not name]
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
