"""Tables of cases, each with the test that shows it, from tests/*_cases.tsv.

A line that begins with # is a comment; the columns are separated by tabs.
"""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"


def rows_of(name: str) -> list[list[str]]:
    """The cells of each line."""
    lines = (TESTS / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def field_table() -> str:
    """Situations that users reported, for docs/dev/field-cases.md."""
    head = ["| | situation | what kvshelf does | test |", "|---|---|---|---|"]
    rows = [
        f"| {case} | {what} | {now} | `{test}` |"
        for case, what, now, test in rows_of("field_cases.tsv")
    ]
    return "\n".join([*head, *rows]) + "\n"


def sharing_table() -> str:
    """Which requests share and what options do, for docs/howto/share-and-why-not.md."""
    lines = ["| request | shares | reason in the metric | test |", "|---|---|---|---|"]
    options = ["", "| option | effect | test |", "|---|---|---|"]
    for kind, what, effect, reason, test in rows_of("sharing_cases.tsv"):
        if kind == "request":
            lines.append(f"| {what} | {effect} | {reason} | `{test}` |")
        else:
            options.append(f"| {what} | {effect} | `{test}` |")
    return "\n".join([*lines, *options]) + "\n"
