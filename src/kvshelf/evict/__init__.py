"""Keeps a shelf within its limits. See docs/eviction.md."""

from kvshelf.evict.evictor import Evictor, OnRemoved, Report, State
from kvshelf.evict.limits import Amount, Limits, Need, Volume

__all__ = ["Amount", "Evictor", "Limits", "Need", "OnRemoved", "Report", "State", "Volume"]
