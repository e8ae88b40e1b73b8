"""The ``--json`` documents as the reference describes them: the page is what commands are held to.

A field that comes keeps the version; one that goes or changes its meaning raises it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/exit-codes-and-json.md"
_HEAD = "| field | type | unit | meaning |"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a document.

    Attributes:
        path: ``a.b`` is a member, ``a[].b`` a member of a list's elements.
        type: text, number, boolean, object, any, a name of an object that recurs; "list of" or
            "map of" one of them; with "or null" if it may be null.
        optional: whether it may be absent.
    """

    path: str
    type: str
    unit: str
    meaning: str
    optional: bool


def read_page(text: str) -> dict[str, list[Field]]:
    """The fields of each table of fields, by the heading above it."""
    found: dict[str, list[Field]] = {}
    name, is_table = "", False
    for line in text.splitlines():
        if line.startswith("#"):
            name, is_table = line.lstrip("# "), False
        is_table = is_table or line == _HEAD
        if is_table and line.startswith("| `"):
            path, kind, unit, meaning = (part.strip() for part in line.strip("|").split("|"))
            kind, _, optional = kind.partition(", ")
            field = Field(path.strip("`"), kind, unit, meaning, optional == "optional")
            found.setdefault(name, []).append(field)
    return found


_TABLES = read_page(PAGE.read_text(encoding="utf-8"))
# Name and version of every document, and the objects that recur in them.
DOCUMENTS = [name for name in _TABLES if re.fullmatch(r"kvshelf\.[a-z]+/\d+", name)]
OBJECTS = [name for name in _TABLES if name not in DOCUMENTS]


def fields_of(name: str) -> list[Field]:
    """The fields of a document, with those of the objects that recur."""
    return list(_with_members(_TABLES[name]))


def _with_members(fields: list[Field]) -> Iterator[Field]:
    for each in fields:
        yield each
        is_list = each.type.startswith("list of ")
        inner = each.type.removeprefix("list of ").removesuffix(" or null")
        for member in _TABLES[inner] if inner in OBJECTS else ():
            yield replace(member, path=f"{each.path}{'[]' * is_list}.{member.path}")
