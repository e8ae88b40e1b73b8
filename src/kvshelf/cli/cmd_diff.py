"""``kvshelf diff``: in what two namespaces differ, why that keeps them apart, and what to do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from kvshelf.cli.common import (
    ROOT_HELP,
    CommandError,
    Exit,
    cut,
    listed_namespaces,
    print_json,
    safe,
    shortened,
)
from kvshelf.disk.namespace import ABSENT, Identity, diff
from kvshelf.disk.reasons import Reason, explain
from kvshelf.disk.root import NamespaceEntry

HELP = "say in what two namespaces differ, why that matters, and what makes them equal"
DESCRIPTION = """\
Engines share chunks only within a namespace: a folder for all that decides the bytes
of the KV cache. Print each identity field that differs, as FIELD: LEFT | RIGHT, what it
means, and what makes the two equal. A and B are folders of the root, or the first
characters of a folder or of a digest. Exit status 1: they differ.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help=ROOT_HELP)
    parser.add_argument("left", metavar="A", help="a namespace")
    parser.add_argument("right", metavar="B", help="another one")


def run(options: argparse.Namespace) -> Exit:
    root, entries = listed_namespaces(options.root)
    left, right = (_selected(entries, name) for name in (options.left, options.right))
    reasons = explain(diff(_identity(left), _identity(right)))
    if options.json:
        print_json(
            "kvshelf.diff/1",
            {
                "root": str(root),
                "left": left.folder,
                "right": right.folder,
                "differences": [_json(reason) for reason in reasons],
            },
        )
    else:
        print("\n".join(_lines(reasons)))
    return Exit.FINDINGS if reasons else Exit.FINE


def _selected(entries: Sequence[NamespaceEntry], name: str) -> NamespaceEntry:
    """The entry that a user means.

    Raises:
        CommandError: none or several are meant.
    """
    wanted = name.rstrip("/")  # as a shell completes a folder
    found = [entry for entry in entries if entry.folder == wanted] or [
        entry
        for entry in entries
        if entry.folder.startswith(wanted)
        or (entry.identity is not None and entry.identity.digest.hex().startswith(wanted.lower()))
    ]
    if len(found) == 1:
        return found[0]
    shown = shortened([entry.folder for entry in found or entries])
    if found:
        message = f"{safe(name)!r} may be any of these namespaces:\n{shown}"
    elif entries:
        message = f"no namespace {safe(name)!r}; there are:\n{shown}"
    else:
        message = f"no namespace {safe(name)!r}; the shelf has none"
    raise CommandError(Exit.USAGE, message)


def _identity(entry: NamespaceEntry) -> Identity:
    """The identity of an entry that a user chose; a problem with it goes to stderr.

    Raises:
        CommandError: it has none.
    """
    if entry.identity is None:
        text = f"{safe(entry.folder)}/namespace.json: {safe(entry.problem)}"
        raise CommandError(Exit.FINDINGS, text)
    if entry.problem:
        print(f"kvshelf: {safe(entry.folder)}: {safe(entry.problem)}", file=sys.stderr)
    return entry.identity


def _lines(reasons: Sequence[Reason]) -> list[str]:
    """One a field; what several fields in a row mean is said once, below them."""
    lines = []
    for (meaning, remedy), group in groupby(reasons, lambda each: (each.meaning, each.remedy)):
        for reason in group:
            values = f"{_value(reason.difference.left)} | {_value(reason.difference.right)}"
            lines.append(f"{safe(reason.difference.field)}: {values}")
        if meaning:
            lines.append(f"    {meaning} -> {remedy}")
    return lines or ["equal in every field: they share"]


def _json(reason: Reason) -> dict[str, Any]:
    """A side that lacks the field has no entry; null is a value."""
    difference = reason.difference
    sides = {"left": difference.left, "right": difference.right}
    present = {side: value for side, value in sides.items() if value is not ABSENT}
    said = {"meaning": reason.meaning, "remedy": reason.remedy}
    return {"field": difference.field, **present, **said}


def _value(value: Any) -> str:
    if value is ABSENT:
        return str(ABSENT)
    return cut(safe(json.dumps(value, sort_keys=True, ensure_ascii=False)))
