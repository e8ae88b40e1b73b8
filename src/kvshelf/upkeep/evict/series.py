"""Which namespaces have a metric series of their own. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping

from kvshelf.upkeep.evict.limits import Amount, total

# A shelf may have 10,000 namespaces, and every series costs a scrape and a monitoring system.
NAMESPACES_MAX = 100
# Stands for all others; no namespace's folder has such a name.
OTHER = "other"


def with_own_series(
    usage: Mapping[str, Amount], kept: Collection[str] = (), limit: int = NAMESPACES_MAX
) -> dict[str, Amount]:
    """Choose the namespaces that are shown, and add up the rest as ``OTHER``.

    Args:
        usage: by namespace.
        kept: namespaces that have a series. Those that are still there keep it, so that series do
            not come and go with the order of sizes.
        limit: series at most, ``OTHER`` not counted; the places that are left go to the largest.
    """
    if len(usage) <= limit:
        return dict(usage)
    shown = [folder for folder in kept if folder in usage][:limit]
    others = usage.keys() - set(shown)
    shown += heapq.nlargest(limit - len(shown), others, key=lambda each: (usage[each].bytes, each))
    result = {folder: usage[folder] for folder in shown}
    result[OTHER] = total(usage) - total(result)
    return result
