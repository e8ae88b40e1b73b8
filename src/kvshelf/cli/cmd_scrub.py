"""``kvshelf scrub``: verify every chunk of a shelf, and remove what is bad."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Generator
from pathlib import Path

from kvshelf.cli.common import (
    ROOT_HELP,
    CommandError,
    Exit,
    ended_as_by_ctrl_c,
    existing_shelf,
    prepared_shelf,
    print_json,
    safe,
)
from kvshelf.cli.units import Reader, duration, number, option, size
from kvshelf.disk.auth import read_key
from kvshelf.errors import ConfigError, NotAShelfError
from kvshelf.upkeep.scrub.findings import Finding, Totals
from kvshelf.upkeep.scrub.settings import ScrubSettings

HELP = "verify every chunk of a root, and remove what is bad"
DESCRIPTION = """\
Read every chunk file of a root at a set rate and verify its checksums. Damaged files
and files under a wrong name are removed: the next request computes them anew. So are
temp files of writers that have ended and, with --unused-for, namespaces that no
engine uses. Everything else that is wrong is reported and kept. Reading changes
neither access times nor the page cache. A scrub goes on where the last one stopped.
"""
DEFAULTS = ScrubSettings()
# What a setting is called here.
OPTIONS = {"files_per_second": "--max-files-per-second", "auth_key_file": "--auth-key-file"}
# Between two passes of a daemon, however short they are or fast they fail.
PAUSE_SECONDS = 0.1
# By less a step of 1 MiB would wait for hours.
_BYTES_PER_SECOND_MIN = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help=ROOT_HELP)
    parser.add_argument("--dry-run", action="store_true", help="remove nothing; from the start")
    option(
        parser,
        "--max-bytes-per-second",
        Reader("SIZE", _byte_rate),
        "most that is read; 0: no limit",
        f"{DEFAULTS.megabytes_per_second:g}MB",
    )
    option(
        parser,
        "--max-files-per-second",
        number(0, 1e9),
        "most chunk files that are opened; 0: no limit",
        f"{DEFAULTS.files_per_second:g}",
    )
    option(
        parser,
        "--temp-age",
        duration("1h", "3660d"),
        "age at which a temp file is an orphan if its writer cannot be looked for, as on another "
        "host",
        f"{DEFAULTS.temp_hours:g}h",
    )
    unused_help = "remove namespaces that no engine has used for so long; 0: never"
    option(parser, "--unused-for", duration("0s", "3660d"), unused_help, "0")
    for_help = "stop after so long, and go on the next time; 0: at the end"
    option(parser, "--for", duration("0s", "366d"), for_help, "0", dest="seconds")
    parser.add_argument(
        "--auth-key-file",
        metavar="FILE",
        help="the key of engines with auth_key_file: without it their payloads are not judged",
    )
    parser.add_argument("--from-start", action="store_true", help="ignore the saved place")
    runs = parser.add_mutually_exclusive_group()
    runs.add_argument("--once", action="store_true", help="one pass and no more (the default)")
    every_help = "run forever, one pass each DURATION; 0: one pass"
    option(runs, "--every", duration("0s", "366d"), every_help, "0")


def _byte_rate(text: str) -> int:
    found = size(text)
    if 0 < found < _BYTES_PER_SECOND_MIN:
        allowed = f"allowed is 0, or {_BYTES_PER_SECOND_MIN} bytes and more"
        raise argparse.ArgumentTypeError(f"{text!r}: {allowed}")
    return found


def run(options: argparse.Namespace) -> Exit:
    settings = _settings(options)
    root = existing_shelf(options.root) if options.dry_run else prepared_shelf(options.root)
    with ended_as_by_ctrl_c():  # the place is kept
        if options.every:
            return _daemon(root, settings, options)
        totals = _pass(root, settings, options)
    return Exit.FINDINGS if totals.findings else Exit.FINE


def _daemon(root: Path, settings: ScrubSettings, options: argparse.Namespace) -> Exit:
    """Goes on when the mount is away for a while, or its output."""
    with contextlib.suppress(KeyboardInterrupt):  # no other end
        while True:
            begun = time.monotonic()
            try:
                _pass(root, settings, options)
            except (CommandError, OSError) as error:
                with contextlib.suppress(OSError):
                    print(f"kvshelf: {error}; trying again", file=sys.stderr, flush=True)
            pause = begun + options.every - time.monotonic()
            time.sleep(max(PAUSE_SECONDS, pause))
    return Exit.FINE


def _pass(root: Path, settings: ScrubSettings, options: argparse.Namespace) -> Totals:
    """
    Raises:
        CommandError: the shelf cannot be read.
        OSError: the output cannot be written.
    """
    from kvshelf.upkeep.scrub.scrubber import Scrubber  # noqa: PLC0415 - it needs the extension

    def found() -> Generator[Finding]:
        try:
            yield from scrubber.run()
        except (NotAShelfError, OSError) as error:
            raise CommandError(Exit.NO_SHELF, f"{options.root}: {error}") from error

    begun = time.monotonic()
    scrubber = Scrubber(root, settings)
    _report(found(), scrubber.totals, begun, options)
    return scrubber.totals


def _settings(options: argparse.Namespace) -> ScrubSettings:
    try:
        key = {}
        if options.auth_key_file is not None:
            key["auth_key"] = read_key(options.auth_key_file)
        return ScrubSettings(
            megabytes_per_second=options.max_bytes_per_second / 1e6,
            files_per_second=options.max_files_per_second,
            temp_hours=options.temp_age / 3600,
            unused_days=options.unused_for / 86_400,
            minutes=options.seconds / 60,
            dry_run=options.dry_run,
            from_start=options.from_start,
            **key,
        )
    except ConfigError as error:
        option = OPTIONS[error.setting]
        raise CommandError(Exit.USAGE, f"{option} {error.value}: {error.allowed}") from error


def _report(
    findings: Generator[Finding], totals: Totals, begun: float, options: argparse.Namespace
) -> None:
    """Print findings as they come and, however the scrub ends, the totals."""
    try:
        with contextlib.closing(findings):
            for finding in findings:
                _print_finding(finding, as_json=options.json)
    finally:
        seconds = time.monotonic() - begun
        if options.json:
            summary = {**totals.to_json(), "seconds": round(seconds, 3)}
            print_json("kvshelf.scrub/1", {"summary": summary}, lines=True)
        else:
            _print_totals(totals, seconds, is_dry=options.dry_run)


def _print_finding(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        print_json("kvshelf.scrub/1", {"finding": finding.to_json()}, lines=True)
        return
    what = f"{finding.action} {safe(finding.path)}" if finding.path else "the shelf"
    print(f"{finding.kind}: {what}: {safe(finding.detail)}", flush=True)


def _print_totals(totals: Totals, seconds: float, *, is_dry: bool) -> None:
    rate = totals.bytes / 1e6 / seconds if seconds else 0.0
    stopped = "stopped" if is_dry else "stopped: the next scrub goes on there"
    end = "to the end of the shelf" if totals.finished else stopped
    print(f"{totals.files} chunks, {totals.bytes / 1e6:.1f} MB at {rate:.1f} MB/s, {end}")
    if totals.sealed:
        print(f"{totals.sealed} of them carry tags of a key that was not given: not verified")
    if totals.vanished or totals.writing:
        print(f"{totals.vanished} vanished meanwhile, {totals.writing} temp files being written")
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(totals.findings.items()))
    print(f"findings: {counts or 'none'}", flush=True)
