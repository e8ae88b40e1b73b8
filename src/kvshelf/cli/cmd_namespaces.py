"""``kvshelf namespaces``: which identities share a shelf, and in what two of them differ."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvshelf.cli.common import (
    CommandError,
    Exit,
    existing_shelf,
    print_json,
    safe,
    shortened,
    table_lines,
)
from kvshelf.disk.namespace import ABSENT, FieldDifference, Identity, diff, reason
from kvshelf.disk.root import NamespaceEntry, list_namespaces

HELP = "list the namespaces of a shelf, or say in what two of them differ"
DESCRIPTION = """\
Engines share chunks only within a namespace: a folder for all that decides the bytes
of the KV cache. Without --diff, list them; a namespace.json that is damaged is a
finding. With --diff, print each identity field that differs, as FIELD: LEFT | RIGHT,
and why that keeps the two apart where the field's name does not say it.
A and B are folders, or the first characters of a folder or of a digest.
"""
# Columns of a wide terminal; longer values are cut, --json is complete.
VALUE_CHARS_MAX = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="the shelf's directory")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="two namespaces to compare")


def run(options: argparse.Namespace) -> Exit:
    root = existing_shelf(options.root)
    try:
        entries = list_namespaces(root)
    except OSError as error:
        raise CommandError(Exit.NO_SHELF, f"{options.root}: {error.strerror}") from error
    if options.diff is None:
        return _list(root, entries, as_json=options.json)
    left, right = (select(entries, name) for name in options.diff)
    return _compare(left, right, as_json=options.json)


def _list(root: Path, entries: Sequence[NamespaceEntry], *, as_json: bool) -> Exit:
    if as_json:
        print_json({"root": str(root), "namespaces": [_entry_json(entry) for entry in entries]})
    elif entries:
        rows = [("FOLDER", "MODEL", "ENGINE", "DIGEST"), *map(_row, entries)]
        print("\n".join(table_lines(rows)))
    else:
        print(f"no namespaces in {safe(str(root))}")
    findings = [entry for entry in entries if entry.problem]
    if not as_json:
        for entry in findings:
            print(f"finding: {safe(entry.folder)}/namespace.json: {safe(entry.problem)}")
    return Exit.FINDINGS if findings else Exit.FINE


def _entry_json(entry: NamespaceEntry) -> dict[str, Any]:
    identity = entry.identity
    return {
        "folder": entry.folder,
        "model": identity and identity.model,
        "engine": identity and identity.fields.get("engine"),
        "digest": identity and identity.digest.hex(),
        "identity": identity and identity.to_json()["identity"],
        "problem": entry.problem or None,
    }


def _row(entry: NamespaceEntry) -> tuple[str, ...]:
    if entry.identity is None:
        return (safe(entry.folder), "(damaged)", "", "")
    engine = entry.identity.fields.get("engine", "")
    texts = (entry.folder, entry.identity.model, str(engine), entry.identity.digest12)
    return tuple(_cut(safe(text)) for text in texts)


def select(entries: Sequence[NamespaceEntry], name: str) -> NamespaceEntry:
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


def identity_of(entry: NamespaceEntry) -> Identity:
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


def _compare(left: NamespaceEntry, right: NamespaceEntry, *, as_json: bool) -> Exit:
    differences = diff(identity_of(left), identity_of(right))
    if as_json:
        print_json(
            {
                "left": left.folder,
                "right": right.folder,
                "differences": [_difference_json(difference) for difference in differences],
            }
        )
    else:
        for difference in differences:
            values = (_value(difference.left), _value(difference.right))
            print(f"{safe(difference.field)}: {' | '.join(values)}")
        for why in dict.fromkeys(filter(None, (reason(each.field) for each in differences))):
            print(f"  ({why})")
        if not differences:
            print("equal in every field")
    return Exit.FINDINGS if differences else Exit.FINE


def _difference_json(difference: FieldDifference) -> dict[str, Any]:
    """A side that lacks the field has no entry; null is a value. A reason only if there is one."""
    sides = {"left": difference.left, "right": difference.right}
    present = {side: value for side, value in sides.items() if value is not ABSENT}
    why = reason(difference.field)
    return {"field": difference.field, **present, **({"reason": why} if why else {})}


def _value(value: Any) -> str:
    if value is ABSENT:
        return str(ABSENT)
    return _cut(safe(json.dumps(value, sort_keys=True, ensure_ascii=False)))


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 3]}..."
