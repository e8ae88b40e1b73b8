"""What a JSON document is made of: its fields by path, with the types of their values."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_TYPES = {bool: "boolean", int: "number", float: "number", str: "text", type(None): "null"}


def shape(value: Any, free: Collection[str] = (), path: str = "") -> dict[str, set[str]]:
    """Types by path: ``a.b`` is a member, ``a[]`` an element.

    Args:
        free: paths of objects whose members are named by data, not by us.
    """
    if path in free:
        return {path: {"any"}}
    found: dict[str, set[str]] = {}
    if isinstance(value, dict):
        parts = [(f"{path}.{name}" if path else name, each) for name, each in value.items()]
        found[path] = {"object"}
    elif isinstance(value, list):
        parts = [(f"{path}[]", each) for each in value]
        found[path] = {"list"}
    else:
        return {path: {_TYPES[type(value)]}}
    for where, each in parts:
        for name, types in shape(each, free, where).items():
            found.setdefault(name, set()).update(types)
    if not path:
        del found[path]
    return found
