"""The reference of the Python library, from its docstrings: docs/reference/python.md. Pure."""

from __future__ import annotations

import inspect
import re
from typing import Any

import kvshelf
from kvshelf.engine.base import Engine


def library_table() -> str:
    """The methods of ``Shelf``, then every other public name."""
    names = [name for name in kvshelf.__all__ if name != "Shelf"]
    methods = [_row(_call(name, it), it, name) for name, it in _methods().items()]
    others = [_row(name, getattr(kvshelf, name), name) for name in names]
    shelf = ["## Shelf", "", _first(kvshelf.Shelf), "", "| method | |", "|---|---|", *methods, ""]
    return "\n".join([*shelf, "## Other names", "", "| name | |", "|---|---|", *others, ""])


def _methods() -> dict[str, Any]:
    found = {name: getattr(kvshelf.Shelf, name) for name in vars(kvshelf.Shelf) if name[0] != "_"}
    return {name: it for name, it in found.items() if callable(it)}


def _call(name: str, method: Any) -> str:
    written = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(method)))
    return f"{name}{re.sub(r'^.self(, )?', '(', written)}"


def _row(written: str, it: Any, name: str) -> str:
    escaped = written.replace("|", "\\|")
    return f"| `{escaped}` | {_first(it) or _first(getattr(Engine, name, None))} |"


def _first(it: Any) -> str:
    """The first paragraph of a docstring; of a type that is made of another, nothing."""
    text = "" if it is kvshelf.ChunkKey else inspect.getdoc(it) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
