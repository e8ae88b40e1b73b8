"""An engine's statistics as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from kvshelf import metrics
from kvshelf.engine.base import EngineStats


def engine_gauges(stats: EngineStats) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """(name, label values, value) of every gauge that an engine has."""
    yield metrics.QUEUE_FILES, ("load",), stats.queued_loads
    yield metrics.QUEUE_FILES, ("store",), stats.queued_stores
    yield metrics.QUEUE_FILES, ("lookup",), stats.queued_lookups
    yield metrics.QUEUE_FILES, ("touch",), stats.queued_touches
    yield metrics.WRITE_BUFFER_BYTES, (), stats.write_buffer_used_bytes
    yield metrics.HUNG_THREADS, (), stats.hung_threads
    yield metrics.REMOVED_BAD, (), stats.removed_bad
    yield metrics.STORED_PAYLOAD_BYTES, (), stats.stored_payload_bytes
    yield metrics.STORED_FILE_BYTES, (), stats.stored_file_bytes
