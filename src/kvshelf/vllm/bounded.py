"""Tables that must not grow for ever."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any


def drop_oldest(table: MutableMapping[Any, Any], most: int) -> None:
    """Keep ``most`` entries, those that were put in last. Of a dict, which remembers the order."""
    while len(table) > most:
        del table[next(iter(table))]
