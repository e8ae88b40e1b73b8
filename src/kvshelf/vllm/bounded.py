"""Tables that must not grow for ever."""

from __future__ import annotations

import itertools
from collections.abc import MutableMapping
from typing import Any


def drop_oldest(table: MutableMapping[Any, Any], most: int) -> None:
    """Keep ``most`` entries, those that were put in last. Of a dict, which remembers the order.

    For many at once: each call looks anew for a dict's first entry, past all that went before it.
    """
    for key in list(itertools.islice(table, max(0, len(table) - most))):
        del table[key]
