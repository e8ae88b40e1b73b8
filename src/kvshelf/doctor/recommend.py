"""Settings for a mount, from what was measured on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvshelf.bench import Row
from kvshelf.config import Settings

# More threads must bring this much to be worth their cores.
_WORTH_IT = 1.05
# The time in which a prefix of 4,096 chunks should be looked up (benchmarks/bench_lookup.py).
_LOOKUP_KEYS, _LOOKUP_SECONDS = 4096, 0.4
_LOOKUP_THREADS_MAX = 256


def recommend(root: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """The configuration for ``--kv-transfer-config``: only what differs from the defaults."""
    defaults = Settings()
    extra: dict[str, Any] = {"shared_storage_path": str(root)}
    threads = threads_for(rows)
    # Fewer would be enough for this mount, but not for what is still in the page cache.
    if threads is not None and threads > defaults.threads_per_gpu:
        extra["threads_per_gpu"] = threads
    lookups = lookup_threads_for(rows)
    if lookups > defaults.lookup_threads:
        extra["lookup_threads"] = lookups
    return {
        "kv_connector": "KvshelfConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }


def threads_for(rows: Sequence[Row]) -> int | None:
    """The fewest threads that load about as fast as any measured number; None without loads."""
    loads = sorted((row.threads, row.engine) for row in rows if row.operation == "cold-load")
    if not loads:
        return None
    best = max(rate for _, rate in loads)
    return next(threads for threads, rate in loads if rate * _WORTH_IT >= best)


def lookup_threads_for(rows: Sequence[Row]) -> int:
    """Threads that look up 4,096 keys in 0.4 s at the measured time of one."""
    one = max((row.more.get("miss_ms", 0.0) / 1e3 for row in rows), default=0.0)
    return min(_LOOKUP_THREADS_MAX, math.ceil(_LOOKUP_KEYS * one / _LOOKUP_SECONDS))
