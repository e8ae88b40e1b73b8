"""``kvshelf doctor``: will kvshelf work on this mount, how fast, and with which settings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvshelf.bench import Row, Scratch, Workload, measure, shortage
from kvshelf.cli.cmd_bench import print_rows, progress
from kvshelf.cli.common import (
    ANSWER_SECONDS,
    Exit,
    check_path,
    ended_as_by_ctrl_c,
    print_json,
    safe,
)
from kvshelf.cli.units import duration, option, size_in
from kvshelf.config import Settings
from kvshelf.disk.deadline import NoAnswerError, within
from kvshelf.disk.root import is_shelf
from kvshelf.disk.volume import NO_ROOM
from kvshelf.doctor.findings import Finding, Severity, fine, note, problem, warning
from kvshelf.doctor.folders import check_folders
from kvshelf.doctor.host import check_host
from kvshelf.doctor.mounts import mount_of
from kvshelf.doctor.peers import findings_of, meet
from kvshelf.doctor.recommend import recommend
from kvshelf.doctor.room import check_room, check_write, no_room
from kvshelf.doctor.semantics import check_semantics
from kvshelf.doctor.site import check_directory, check_mount
from kvshelf.doctor.trial import check_trial
from kvshelf.errors import ConfigError
from kvshelf.text import bytes_text

HELP = "check a mount and this host, and recommend settings"
DESCRIPTION = """\
Looks at ROOT as kvshelf will use it: is it ours to write, how does the mount publish,
touch and sync files, can a chunk be stored and loaded, how fast is it, what is this
host, are the settings right. Writes into a folder of its own, which is removed. Ends
with settings to paste.

--peer waits for the same command on another node and measures how soon one finds what
the other stored. Why two replicas do not share: kvshelf diff.
"""
_MARKS = {
    Severity.FINE: "ok",
    Severity.NOTE: "note",
    Severity.WARNING: "warning",
    Severity.PROBLEM: "PROBLEM",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "root", metavar="ROOT", help="a root of a shelf, or a directory that is to be one"
    )
    parser.add_argument("--quick", action="store_true", help="measure no speed: a second or two")
    size_help = "moved to measure speed, at least 32MB"
    option(parser, "--size", size_in("32MB", "1TiB"), size_help, "256MB")
    parser.add_argument("--peer", action="store_true", help="measure with a second node")
    option(parser, "--wait", duration("0s", "1d"), "for the peer", "60s")
    parser.add_argument(
        "--settings", metavar="JSON", help="kv_connector_extra_config to check, or @FILE"
    )


def run(options: argparse.Namespace) -> Exit:
    check_path(options.root)
    root = Path(options.root).absolute()
    findings = _first_look(root)
    given, settings_given = (None, None)
    if options.settings is not None:
        given, settings_given = read_settings(options.settings)
    rows: list[Row] = []
    if not _bad(findings):
        try:
            findings += check_mount(mount_of(root)) + check_room(root) + check_folders(root)
            with ended_as_by_ctrl_c():
                rows = _try_out(options, root, findings, settings_given or Settings())
                if options.peer:
                    findings += _meet(root, options.wait)
        except OSError as error:
            findings.append(_failure(error, root))
    findings += check_host()
    if given is not None:
        findings.append(given)
    settings = None if _bad(findings) else recommend(root, rows)
    if options.json:
        print_json(
            "kvshelf.doctor/1",
            {
                "root": options.root,
                "findings": [finding.to_json() for finding in findings],
                "rows": [row.to_json() for row in rows],
                "settings": settings,
            },
        )
    else:
        _print(findings, rows, settings)
    worst = max(finding.severity for finding in findings)
    return Exit.FINDINGS if worst >= Severity.WARNING else Exit.FINE


def _failure(error: OSError, root: Path) -> Finding:
    if error.errno in NO_ROOM:
        return no_room(error.errno, root)
    return problem("mount", f"it fails: {error}", "see the kernel's and its server's log")


def _first_look(root: Path) -> list[Finding]:
    try:
        return within(ANSWER_SECONDS, lambda: check_directory(root))
    except NoAnswerError as error:
        remedy = "it hangs: see its server and the kernel's log"
        return [problem("mount", f"{root}: {error}", remedy)]
    except OSError as error:
        return [_failure(error, root)]


def _bad(findings: Sequence[Finding]) -> bool:
    return any(finding.severity is Severity.PROBLEM for finding in findings)


def _try_out(
    options: argparse.Namespace, root: Path, findings: list[Finding], settings: Settings
) -> list[Row]:
    """Semantics, a trial and speed, in a scratch folder."""
    with Scratch(root) as scratch:
        findings.append(check_write(scratch.path))
        if not _bad(findings):
            findings += check_semantics(
                scratch.path,
                durability=settings.durability,
                file_mode=settings.file_mode,
                dir_mode=settings.dir_mode,
            )
        if not _bad(findings):
            findings.append(check_trial(scratch.path, settings))
        if options.quick or _bad(findings):
            return []
        workload = Workload(
            total_bytes=options.size,
            chunk_bytes=8 << 20,
            threads=(1, 12, 32),
            rounds=2,
            operations=("store", "cold-load", "lookup"),
        )
        missing = shortage(root, workload)
        try:
            if not missing:
                return measure(scratch.path, workload, progress)
        except (MemoryError, ConfigError):  # of the engine's buffers
            missing = "needs more memory than there is"
        finally:
            progress("")
    text = f"not measured: --size {bytes_text(options.size)} {missing}"
    findings.append(warning("speed", text, "free some, or give a smaller --size"))
    return []


def _meet(root: Path, wait_seconds: float) -> list[Finding]:
    if not is_shelf(root):
        remedy = "start an engine, or store something first"
        return [note("peers", "not measured: no shelf yet", remedy)]
    progress(f"waiting up to {wait_seconds:.0f} s for kvshelf doctor --peer on another node")
    try:
        return [*findings_of(meet(root, wait_seconds))]
    finally:
        progress("")


def read_settings(text: str) -> tuple[Finding, Settings | None]:
    """Whether kvshelf takes the settings that a user means to give, and what they are."""
    remedy = "a JSON object, or @ and a file of one"
    try:
        given = json.loads(Path(text[1:]).read_text("utf-8") if text.startswith("@") else text)
    except OSError as error:
        reason = error.strerror or str(error)
        return problem("settings", f"{text[1:]} cannot be read: {reason}", remedy), None
    except (ValueError, RecursionError) as error:
        return problem("settings", f"not JSON: {error}", remedy), None
    # Of a whole --kv-transfer-config, the part that is ours.
    name = "kv_connector_extra_config"
    inner = isinstance(given, dict) and name in given
    given = given[name] if inner else given
    if not isinstance(given, dict):
        text = f"{name} is no JSON object" if inner else "not a JSON object"
        return problem("settings", text, '{"shared_storage_path": "/mnt/kv"}'), None
    try:
        settings = Settings.from_mapping(given)
    except ConfigError as error:
        return problem("settings", safe(str(error)), "docs/reference/settings.md"), None
    return fine("settings", "accepted"), settings


def _print(findings: Sequence[Finding], rows: Sequence[Row], settings: Any) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark = _MARKS[finding.severity]
        print(f"{mark:>7}  {finding.check.ljust(width)}  {safe(finding.message)}")
        if finding.remedy:
            print(f"{'':>7}  {'':{width}}  -> {safe(finding.remedy)}")
    if rows:
        print()
        print_rows(rows)
    print()
    if settings is None:
        print("kvshelf cannot work here until the problems above are gone.")
    else:
        print("Settings for --kv-transfer-config:")
        print(json.dumps(settings))
