"""An engine's duties, one a root, from its settings: the same for every kind of engine."""

from __future__ import annotations

import functools

from kvshelf.config import Settings
from kvshelf.shelf import Shelf
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.limits import Limits


def limits_of(settings: Settings) -> Limits:
    """What a user allows the shelf to take; nothing at all is limited if eviction is off."""
    if not settings.evict:
        return Limits()
    return Limits(
        shelf_bytes=int(settings.evict_shelf_gb * 1e9) or None,
        volume_percent=settings.evict_percent,
        inode_percent=settings.evict_percent,
        low_percent=settings.evict_low_percent,
    )


def duties_of(settings: Settings, shelf: Shelf) -> list[EvictionDuty]:
    """The duties of one engine, one a root, for its namespace. Not started."""
    return [
        EvictionDuty(
            root,
            shelf.folder,
            limits=limits_of(settings),
            lease_seconds=settings.evict_lease_seconds,
            dir_mode=settings.dir_mode,
            file_mode=settings.file_mode,
            renew=functools.partial(shelf.renew_use, root),
        )
        for root in shelf.roots
    ]
