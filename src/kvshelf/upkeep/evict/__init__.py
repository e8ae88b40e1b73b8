"""Keeps a shelf within its limits. See docs/explain/eviction.md."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvshelf.upkeep.evict.evictor import Evictor, OnRemoved
    from kvshelf.upkeep.evict.limits import Amount, Limits, Need, Volume
    from kvshelf.upkeep.evict.report import Report, State

_HOMES = {
    "evictor": ("Evictor", "OnRemoved"),
    "limits": ("Amount", "Limits", "Need", "Volume"),
    "report": ("Report", "State"),
}

__all__ = ["Amount", "Evictor", "Limits", "Need", "OnRemoved", "Report", "State", "Volume"]


def __getattr__(name: str) -> Any:
    """Names are loaded when used (PEP 562): the evictor needs the extension, its policy and its
    limits do not."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"kvshelf.upkeep.evict.{module}"), name)
    raise AttributeError(name)
