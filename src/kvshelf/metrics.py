"""Every metric of kvshelf: name, kind, labels, unit and help, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One series. Prometheus adds ``_total`` to the names of counters."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None


LOOKUPS = "kvshelf:lookups"
LOOKUP_SECONDS = "kvshelf:lookup_seconds"
LOAD_CHUNKS = "kvshelf:load_chunks"
LOAD_BYTES = "kvshelf:load_bytes"
LOAD_SECONDS = "kvshelf:load_seconds"
LOAD_FAILURES = "kvshelf:load_failures"
STORE_BYTES = "kvshelf:store_bytes"
STORE_SECONDS = "kvshelf:store_seconds"
STORE_OUTCOMES = "kvshelf:store_outcomes"
HEALED_CHUNKS = "kvshelf:healed_chunks"
REMOVED_BAD = "kvshelf:removed_bad_chunks"
WRITE_BUFFER_BYTES = "kvshelf:write_buffer_used_bytes"
QUEUE_FILES = "kvshelf:queue_files"
HUNG_THREADS = "kvshelf:hung_threads"
BREAKER_STATE = "kvshelf:breaker_state"
BREAKER_OPENINGS = "kvshelf:breaker_openings"
REFUSED_HIT_TOKENS = "kvshelf:refused_hit_tokens"
REQUESTS_LEFT_ALONE = "kvshelf:requests_left_alone"
WEIGHTS_KNOWN = "kvshelf:weights_known"
WEIGHT_EPOCHS = "kvshelf:weight_epochs"
AUDIT_CHUNKS = "kvshelf:audit_chunks"
AUDIT_DISTANCE = "kvshelf:audit_distance"
AUDIT_TOKENS = "kvshelf:audit_tokens"
AUDIT_OFF = "kvshelf:audit_off"
EVICT_LEASE_HELD = "kvshelf:evict_lease_held"
EVICT_DURATION = "kvshelf:evict_pass_seconds"
GONE_KEYS = "kvshelf:gone_keys"
EVICTED_CHUNKS = "kvshelf:evicted_chunks"
EVICTED_BYTES = "kvshelf:evicted_bytes"
EVICT_SPARED = "kvshelf:evict_spared_chunks"
EVICT_FAULTS = "kvshelf:evict_faults"
EVICT_NO_EFFECT = "kvshelf:evict_no_effect"
EVICT_TEMP_FILES = "kvshelf:evicted_temp_files"
EVICT_TEMP_BYTES = "kvshelf:evicted_temp_bytes"
ROOM_REQUESTS = "kvshelf:evict_room_requests"
SHELF_CHUNKS = "kvshelf:shelf_chunks"
SHELF_BYTES = "kvshelf:shelf_bytes"
SHELF_FOREIGN = "kvshelf:shelf_foreign_files"
VOLUME_USED_BYTES = "kvshelf:volume_used_bytes"
VOLUME_TOTAL_BYTES = "kvshelf:volume_total_bytes"
EVICT_STATE = "kvshelf:evict_state"
EVICT_HELD = "kvshelf:evict_held_chunks"

LOOKUP_RESULTS = ("hit", "miss", "timeout", "error")
BREAKER_SIDES = ("reading", "writing")
QUEUE_KINDS = ("load", "store", "lookup", "touch")

# From a metadata call in the page cache to a server that takes its time.
_LOOKUP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# From one chunk in the page cache to a deadline.
_TRANSFER_BUCKETS = (
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
    120.0,
)

# Up to 1 is rounding; files of other content are far above.
_DISTANCE_BUCKETS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 10.0)

# Of whoever evicts, an engine or ``kvshelf evict``.
_EVICTED: tuple[Metric, ...] = (
    Metric(EVICTED_CHUNKS, Kind.COUNTER, "files", "Chunk files removed to stay within limits."),
    Metric(EVICTED_BYTES, Kind.COUNTER, "bytes", "Bytes of those."),
    Metric(
        EVICT_FAULTS,
        Kind.COUNTER,
        "times",
        "What failed in eviction, by errno; other for what is no system call's.",
        ("errno",),
    ),
    Metric(
        EVICT_NO_EFFECT,
        Kind.COUNTER,
        "times",
        "Evictions that were suspended because the file system did not show what went as free, or "
        "stores failed all the same, by limit.",
        ("limit",),
    ),
    Metric(
        EVICT_TEMP_FILES,
        Kind.COUNTER,
        "files",
        "Temp files of dead writers that were removed because room was needed.",
    ),
    Metric(EVICT_TEMP_BYTES, Kind.COUNTER, "bytes", "Bytes of those."),
    Metric(
        ROOM_REQUESTS,
        Kind.COUNTER,
        "requests",
        "Requests for room because stores failed with ENOSPC or EDQUOT: made by this engine, or "
        "answered by kvshelf evict.",
    ),
    Metric(
        SHELF_BYTES,
        Kind.GAUGE,
        "bytes",
        "Bytes of chunk files on the shelf, as who evicts knows them; 0 from others. 100 "
        "namespaces have a series each, the rest is `other`.",
        ("namespace",),
    ),
    Metric(
        EVICT_HELD,
        Kind.GAUGE,
        "files",
        "Chunk files that the file system refused to remove, as the evictor knows them. They are "
        "tried again after a minute.",
    ),
    Metric(
        SHELF_CHUNKS,
        Kind.GAUGE,
        "files",
        "Chunk files on the shelf, of the same namespaces. Reported by the lease holder; 0 from "
        "others.",
        ("namespace",),
    ),
    Metric(
        VOLUME_USED_BYTES,
        Kind.GAUGE,
        "bytes",
        "Bytes of the root's file system that are used. Reported by the lease holder; 0 from "
        "others.",
        ("root",),
    ),
    Metric(
        VOLUME_TOTAL_BYTES,
        Kind.GAUGE,
        "bytes",
        "Bytes of the root's file system, used or free. Reported by the lease holder; 0 from "
        "others.",
        ("root",),
    ),
    Metric(
        EVICT_STATE,
        Kind.GAUGE,
        "state",
        "0 within limits, 1 scanning, 2 evicting, 3 a limit is exceeded and nothing more may go, "
        "4 within limits as far as is known, but folders could not be looked into. Reported by "
        "the lease holder; 0 from others.",
        ("root",),
    ),
    Metric(
        EVICT_LEASE_HELD,
        Kind.GAUGE,
        "state",
        "1: this process evicts in the root. 0: it waits for the lease.",
        ("root",),
    ),
)

# What an evictor that runs by itself shows on a port of its own (docs/explain/eviction.md).
EVICT_METRICS: tuple[Metric, ...] = (
    *_EVICTED,
    Metric(
        EVICT_SPARED,
        Kind.COUNTER,
        "files",
        "Chunk files that were to go, and stayed because they were used meanwhile.",
    ),
    Metric(SHELF_FOREIGN, Kind.GAUGE, "files", "Entries on the shelf that are not kvshelf's."),
)

METRICS: tuple[Metric, ...] = (
    Metric(LOOKUPS, Kind.COUNTER, "keys", "Keys probed on the shelf, by result.", ("result",)),
    Metric(
        LOOKUP_SECONDS,
        Kind.HISTOGRAM,
        "seconds",
        "Time from asking for a batch of keys to its answer.",
        buckets=_LOOKUP_BUCKETS,
    ),
    Metric(LOAD_CHUNKS, Kind.COUNTER, "chunks", "Chunks loaded and verified."),
    Metric(LOAD_BYTES, Kind.COUNTER, "bytes", "KV bytes loaded and verified."),
    Metric(
        LOAD_SECONDS,
        Kind.HISTOGRAM,
        "seconds",
        "Time from submitting a load job to its end.",
        buckets=_TRANSFER_BUCKETS,
    ),
    Metric(
        LOAD_FAILURES,
        Kind.COUNTER,
        "chunks",
        "Chunks that failed to load and were recomputed, by cause.",
        ("cause",),
    ),
    Metric(STORE_BYTES, Kind.COUNTER, "bytes", "KV bytes of chunks that are on the shelf now."),
    Metric(
        STORE_SECONDS,
        Kind.HISTOGRAM,
        "seconds",
        "Time from submitting a store job to its last file's publication.",
        buckets=_TRANSFER_BUCKETS,
    ),
    Metric(
        STORE_OUTCOMES,
        Kind.COUNTER,
        "chunks",
        "Chunks offered for storing, by outcome: published, or why not.",
        ("outcome",),
    ),
    Metric(
        HEALED_CHUNKS,
        Kind.COUNTER,
        "chunks",
        "Chunks that had failed to load and are on the shelf again.",
    ),
    Metric(REMOVED_BAD, Kind.GAUGE, "chunks", "Damaged or foreign chunk files removed so far."),
    Metric(WRITE_BUFFER_BYTES, Kind.GAUGE, "bytes", "Staging memory that holds unwritten stores."),
    Metric(QUEUE_FILES, Kind.GAUGE, "files", "Files waiting for a thread, by kind.", ("kind",)),
    Metric(
        BREAKER_STATE,
        Kind.GAUGE,
        "state",
        "Whether a root is left alone: 0 no, 1 one request tries it, 2 yes.",
        ("side", "root"),
    ),
    Metric(
        BREAKER_OPENINGS,
        Kind.COUNTER,
        "times",
        "How often a root began to be left alone.",
        ("side", "root"),
    ),
    Metric(
        REFUSED_HIT_TOKENS,
        Kind.COUNTER,
        "tokens",
        "Tokens on the shelf that were computed all the same: sooner than loaded, or too few.",
    ),
    Metric(
        REQUESTS_LEFT_ALONE,
        Kind.COUNTER,
        "requests",
        "Requests that kvshelf neither loads nor stores, by reason "
        "(docs/howto/share-and-why-not.md).",
        ("reason",),
    ),
    Metric(
        WEIGHTS_KNOWN,
        Kind.GAUGE,
        "state",
        "1: loads and stores go on. 0: kvshelf does not know the weights of vLLM's KV, and waits "
        "for a reset of vLLM's prefix cache (docs/howto/change-weights.md).",
    ),
    Metric(
        WEIGHT_EPOCHS,
        Kind.COUNTER,
        "epochs",
        "Changes of weights after which this engine uses other chunks.",
    ),
    Metric(
        AUDIT_CHUNKS,
        Kind.COUNTER,
        "files",
        "Chunk files compared with what was computed, by result: equal, within_tolerance, "
        "different, or skipped.",
        ("result",),
    ),
    Metric(
        AUDIT_DISTANCE,
        Kind.HISTOGRAM,
        "tolerances",
        "How far stored values are from computed ones, at worst in a chunk file, in units of the "
        "tolerance: above 1 is different.",
        buckets=_DISTANCE_BUCKETS,
    ),
    Metric(AUDIT_TOKENS, Kind.COUNTER, "tokens", "Tokens of hits that were computed for audits."),
    Metric(
        AUDIT_OFF,
        Kind.GAUGE,
        "state",
        "1: this engine neither loads nor stores, because audits found audit_failures_max files "
        "that differ. Reported by engines that audit only.",
    ),
    *_EVICTED,
    Metric(
        EVICT_DURATION,
        Kind.GAUGE,
        "seconds",
        "Time that this engine's last eviction took, from exceeding a limit to the low mark.",
    ),
    Metric(
        GONE_KEYS,
        Kind.COUNTER,
        "keys",
        "Keys of this engine's namespace that were reported as evicted, by anybody.",
    ),
    Metric(HUNG_THREADS, Kind.GAUGE, "threads", "I/O threads that the storage does not let go."),
)


class EngineGauges(Protocol):
    """The part of ``kvshelf.engine.EngineStats`` that becomes gauges."""

    @property
    def queued_loads(self) -> int: ...
    @property
    def queued_stores(self) -> int: ...
    @property
    def queued_lookups(self) -> int: ...
    @property
    def queued_touches(self) -> int: ...
    @property
    def write_buffer_used_bytes(self) -> int: ...
    @property
    def hung_threads(self) -> int: ...
    @property
    def removed_bad(self) -> int: ...


def engine_gauges(stats: EngineGauges) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """(name, label values, value) of every gauge that an engine has."""
    waiting = (
        stats.queued_loads,
        stats.queued_stores,
        stats.queued_lookups,
        stats.queued_touches,
    )
    for kind, files in zip(QUEUE_KINDS, waiting, strict=True):
        yield QUEUE_FILES, (kind,), files
    yield WRITE_BUFFER_BYTES, (), stats.write_buffer_used_bytes
    yield HUNG_THREADS, (), stats.hung_threads
    yield REMOVED_BAD, (), stats.removed_bad


def metrics_table(metrics: tuple[Metric, ...] = METRICS) -> str:
    """Metrics as a Markdown table, for the documentation. Names as Prometheus shows them."""
    lines = ["| metric | kind | unit | labels | meaning |", "|---|---|---|---|---|"]
    for metric in metrics:
        name = f"{metric.name}_total" if metric.kind is Kind.COUNTER else metric.name
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        cells = (f"`{name}`", metric.kind.value, metric.unit, labels, metric.help)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
