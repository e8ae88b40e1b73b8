from __future__ import annotations

from tests.upkeep.scrub.shelves import filled_shelf, shelf

__all__ = ["filled_shelf", "shelf"]
