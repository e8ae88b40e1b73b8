"""``kvshelf evict``: keeps a shelf within its limits, once or until it is stopped."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kvshelf.cli.common import CommandError, Exit, existing_shelf, safe
from kvshelf.errors import ConfigError, KvshelfError

if TYPE_CHECKING:
    from kvshelf.evict import Evictor, Limits, OnRemoved, Report

HELP = "remove the chunks least recently used while a limit is exceeded"
DESCRIPTION = """\
Looks at the shelf every second, and when a limit is exceeded removes the chunks that
were not used for longest until the low mark is reached. Runs until SIGTERM or SIGINT;
with --once until the shelf is within its limits. Several may run at once, also beside
engines: one evicts and the others wait, but --once does not wait. Without any limit,
90 percent of the file system and of its inodes may be used. SIZE is a number of
bytes, or with a unit: 500GB, 1.5TB, 200GiB. See docs/eviction.md.
Exit status 1 with --once: a limit is still exceeded, and nothing more may go; or some
of the shelf may not be read.
"""
DEFAULT_PERCENT = 90.0
# How long a hung step is waited for once the command is to end.
STOP_SECONDS = 2.0
REPEAT_SECONDS = 60.0

_RANGES = (
    ("--interval", 0.001, 86_400.0),
    ("--rate", 0.0, 1e9),
    ("--threads", 1, 64),
    ("--lease-seconds", 1.0, 3600.0),
)
# Limits by the names that users give them here.
_OPTIONS = {
    "shelf_bytes": "--shelf-limit",
    "namespace_bytes": "--namespace-limit",
    "namespace_bytes_of": "--namespace-limit",
    "volume_percent": "--volume-percent",
    "inode_percent": "--inode-percent",
    "low_percent": "--low-water",
    "keep_percent": "--keep-percent",
}

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(|[kMGTP]i?)B?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{letter}i": 1 << 10 * (i + 1) for i, letter in enumerate("kMGTP")
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("root", metavar="ROOT", help="the shelf's directory")
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
    add("--low-water", metavar="P", type=float, default=95.0, help="percent of a limit (95)")
    add(
        "--keep-percent",
        metavar="P",
        type=float,
        default=10.0,
        help="of the file system: below that, others' data does not shrink the shelf (10)",
    )
    add("--rate", metavar="N", type=float, default=50_000.0, help="files a second (50000); 0: any")
    add("--threads", metavar="N", type=int, default=4, help="threads that look at files (4)")
    add("--interval", metavar="S", type=float, default=1.0, help="seconds between two looks (1)")
    add(
        "--lease-seconds",
        metavar="S",
        type=float,
        default=15.0,
        help="another follows an evictor that is gone after so long (15)",
    )
    add("--once", action="store_true", help="end when there is nothing to do")
    add("--dry-run", action="store_true", help="remove nothing, say what would go (with --once)")
    add("--metrics-port", metavar="PORT", type=int, help="answer /metrics and /healthz there")


def size(text: str) -> int:
    """A number of bytes.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of bytes, or one such as 500GB")
    found = float(match[1]) * _UNITS[match[2]]
    if found >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of bytes below 8 EiB")
    return int(found)


def _namespace_limit(text: str) -> tuple[str, int]:
    name, equals, limit = text.rpartition("=")
    if equals and not name:
        raise argparse.ArgumentTypeError(f"{text!r}: a name before the =, or a SIZE alone")
    return name, size(limit)


def run(options: argparse.Namespace) -> Exit:
    from kvshelf.evict import Evictor  # noqa: PLC0415 - other commands do without the extension

    root = existing_shelf(options.root)
    for option, low, high in _RANGES:
        value = getattr(options, option[2:].replace("-", "_"))
        if not low <= value <= high:  # never true of NaN
            raise CommandError(Exit.USAGE, f"{option} {value:g}: {low:g} to {high:g}")
    try:
        limits = _limits(options)
    except ConfigError as error:
        option = _OPTIONS.get(error.setting, error.setting)
        raise CommandError(Exit.USAGE, f"{option} {error.value}: {error.allowed}") from error
    _warn_of_names(root, limits)

    def make(on_removed: OnRemoved) -> Evictor:
        return Evictor(
            root,
            limits,
            files_per_second=options.rate,
            threads=options.threads,
            dry_run=options.dry_run,
            on_removed=on_removed,
        )

    return _Command(options, root, make).run()


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


def _limits(options: argparse.Namespace) -> Limits:
    from kvshelf.evict import Limits  # noqa: PLC0415

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


class _Command:
    """Steps in a thread, so that a signal is obeyed while a step hangs in the storage."""

    def __init__(
        self, options: argparse.Namespace, root: Path, make: Callable[[OnRemoved], Evictor]
    ) -> None:
        self._options = options
        self._once = options.once or options.dry_run
        self._root = root
        from kvshelf.evict.turn import Turn  # noqa: PLC0415

        self._make = make
        self._turn = Turn(root, lease_seconds=options.lease_seconds, on_fault=self._fault)
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._evictor: Evictor | None = None
        self._status = Exit.FINE
        self._failure: CommandError | BrokenPipeError | None = None
        self._said: dict[str, float] = {}
        self._sum: Report | None = None
        self._exposition: Any = None

    def run(self) -> Exit:
        server = self._serve()
        received: list[int] = []

        def stop(number: int, frame: object) -> None:
            del frame
            received.append(number)
            self._stop.set()
            if self._evictor is not None:
                self._evictor.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        worker = threading.Thread(target=self._work, name="kvs-evictor", daemon=True)
        worker.start()
        try:
            while not self._ended.wait(0.2) and not received:
                pass
            if not self._ended.wait(STOP_SECONDS):
                print("kvshelf: the storage hangs: ended without it", file=sys.stderr, flush=True)
                os._exit(Exit.INTERRUPTED)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if server is not None:
                server.shutdown()
        if self._failure is not None:
            raise self._failure
        return Exit.INTERRUPTED if received and self._once else self._status

    def _serve(self) -> Any:
        if self._options.metrics_port is None:
            return None
        from kvshelf.evict.exposition import Exposition, serve  # noqa: PLC0415

        self._exposition = Exposition()
        try:
            return serve(self._exposition, self._options.metrics_port)
        except (OSError, OverflowError) as error:
            port = self._options.metrics_port
            raise CommandError(Exit.USAGE, f"--metrics-port {port}: {error}") from error

    def _work(self) -> None:
        try:
            self._loop()
        except (CommandError, BrokenPipeError) as error:
            self._failure = error
        except BaseException as error:  # the main thread must hear of it
            self._failure = CommandError(Exit.FINDINGS, f"{type(error).__name__}: {error}")
        finally:
            if not self._once:
                self._turn.leave()
            self._ended.set()

    def _fault(self, what: str, error: Exception) -> None:
        self._say(f"{self._root}: {what}: {error}; trying again", repeat=False)

    def _loop(self) -> None:
        while not self._stop.is_set():
            if not self._once and not self._turn.is_ours():
                if self._exposition is not None and not self._turn.stands_back:
                    self._exposition.waits()
                self._stop.wait(self._options.interval)
                continue
            try:
                if self._evictor is None:
                    self._evictor = self._make(self._turn.removed)
                report = self._evictor.step()
            except (OSError, KvshelfError) as error:
                if self._once:
                    raise CommandError(Exit.NO_SHELF, f"{self._root}: {error}") from error
                self._say(f"{self._root}: {error}; trying again", repeat=False)
                self._evictor = None
                self._turn.stand_back()
                continue
            if self._take(report) and self._once:
                return
            self._hand_over(report)
            self._stop.wait(report.wait_seconds(self._options.interval))

    def _hand_over(self, report: Report) -> None:
        """Another evictor may be able to do what this one cannot."""
        if self._once or not report.gives_way:
            self._turn.succeeded()
            return
        self._say(f"{self._root}: nothing can be removed: left the lease to another", repeat=False)
        self._turn.stand_back()

    def _take(self, report: Report) -> bool:
        """Add a step to what is told; True if the shelf is at rest."""
        if self._exposition is not None:
            self._exposition.add(report)
        if self._sum is not None:
            report = replace(
                report,
                removed=self._sum.removed + report.removed,
                spared=self._sum.spared + report.spared,
                seconds=self._sum.seconds + report.seconds,
                cut_age_seconds=report.cut_age_seconds or self._sum.cut_age_seconds,
            )
        for number, times in report.faults.items():
            text = (
                f"{times} files or folders could not be looked at or removed: {os.strerror(number)}"
            )
            self._say(text, repeat=False)
        if report.clock_problem:
            self._say(f"the file system's clock is not known: {report.clock_problem}", repeat=False)
        if report.unread:
            shown = ", ".join(map(safe, report.unread[:8]))
            self._say(f"may not be read, so it does not count and stays: {shown}", repeat=False)
        if self._once and (report.faults or report.unread):
            self._status = Exit.FINDINGS
        resting = report.state.value in ("idle", "stuck", "stopped")
        self._sum = None if resting else report
        if not resting:
            return False
        if report.state.value == "stuck":
            self._status = Exit.FINDINGS
            for need in report.needs:
                what = _OPTIONS[need.reason]
                self._say(f"{what} is exceeded, and nothing more may go", repeat=False)
        if report.foreign:
            shown = ", ".join(map(safe, report.foreign_examples))
            self._say(
                f"kept {report.foreign} entries that are not kvshelf's: {shown}", repeat=False
            )
        if report.removed or self._once:
            self._print(report)
        return True

    def _print(self, report: Report) -> None:
        if self._options.json:
            value = _as_json(report, dry_run=self._options.dry_run)
            self._write(json.dumps(value, indent=1 if self._once else None) + "\n", sys.stdout)
            return
        shelf, removed = report.shelf, report.removed
        verb = "would remove" if self._options.dry_run else "removed"
        text = f"{verb} {removed.files} chunks, {removed.bytes / 1e9:.3f} GB"
        if report.cut_age_seconds is not None:
            text += f", unused for {report.cut_age_seconds:.0f} s or longer"
        left = f"on the shelf: {shelf.files} chunks, {shelf.bytes / 1e9:.3f} GB"
        self._say(f"{text}; {left}; {report.seconds:.1f} s", repeat=True)

    def _say(self, text: str, *, repeat: bool) -> None:
        """A line for people; the same at most once a minute, unless it may be repeated."""
        now = time.monotonic()
        key = re.sub(r"\d+", "", text)
        if not repeat and now - self._said.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return
        self._said[key] = now
        stream = sys.stderr if self._options.json or not repeat else sys.stdout
        stamp = "" if self._once else f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} "
        self._write(f"{stamp}{safe(text)}\n", stream)

    def _write(self, text: str, stream: TextIO) -> None:
        """A daemon goes on when its log's disk is full, or whoever read it is gone."""
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            if self._once:
                raise


def _as_json(report: Report, *, dry_run: bool) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "state": report.state.value,
        "dry_run": dry_run,
        "removed_files": report.removed.files,
        "removed_bytes": report.removed.bytes,
        "cut_age_seconds": report.cut_age_seconds,
        "spared_files": report.spared,
        "seconds": round(report.seconds, 3),
        "namespaces": {
            folder: {"files": amount.files, "bytes": amount.bytes}
            for folder, amount in report.usage.items()
        },
        "volume": {
            "used_bytes": report.volume.used_bytes,
            "total_bytes": report.volume.total_bytes,
            "used_inodes": report.volume.used_inodes,
            "total_inodes": report.volume.total_inodes,
        },
        "exceeded": [
            {
                "limit": need.reason,
                "namespace": need.folder,
                "bytes": need.amount.bytes + need.short.bytes,
                "files": need.amount.files + need.short.files,
            }
            for need in report.needs
        ],
        "foreign": {"count": report.foreign, "examples": list(report.foreign_examples)},
        "unread": list(report.unread),
        "faults": {str(number): times for number, times in report.faults.items()},
    }
