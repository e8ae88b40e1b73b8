from __future__ import annotations

from tests.scrub.shelves import filled_shelf, shelf

__all__ = ["filled_shelf", "shelf"]
