"""Every metric of kvshelf: name, kind, labels, unit and help, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
STORED_PAYLOAD_BYTES = "kvshelf:stored_payload_bytes"
STORED_FILE_BYTES = "kvshelf:stored_file_bytes"
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

# From a metadata call in the page cache to a server that takes its time.
_LOOKUP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# From one chunk in the page cache to a deadline.
_TRANSFER_BUCKETS = (*_LOOKUP_BUCKETS[2:], 10.0, 30.0, 120.0)
# Up to 1 is rounding; files of other content are far above.
_DISTANCE_BUCKETS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 10.0)


def _counter(name: str, unit: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, unit, help_text, labels)


def _gauge(name: str, unit: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, unit, help_text, labels)


def _histogram(name: str, unit: str, help_text: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name, Kind.HISTOGRAM, unit, help_text, buckets=buckets)


# Of whoever evicts, an engine or ``kvshelf evict``.
_EVICTED: tuple[Metric, ...] = (
    _counter(EVICTED_CHUNKS, "files", "Chunk files removed to stay within limits."),
    _counter(EVICTED_BYTES, "bytes", "Bytes of those."),
    _counter(
        EVICT_FAULTS,
        "times",
        "What failed in eviction, by errno; other for what is no system call's.",
        "errno",
    ),
    _counter(
        EVICT_NO_EFFECT,
        "times",
        "Evictions that were suspended because the file system did not show what went as free, or "
        "stores failed all the same, by limit.",
        "limit",
    ),
    _counter(
        EVICT_TEMP_FILES,
        "files",
        "Temp files of dead writers that were removed because room was needed.",
    ),
    _counter(EVICT_TEMP_BYTES, "bytes", "Bytes of those."),
    _counter(
        ROOM_REQUESTS,
        "requests",
        "Requests for room because stores failed with ENOSPC or EDQUOT: made by this engine, or "
        "answered by kvshelf evict.",
    ),
    _gauge(
        SHELF_BYTES,
        "bytes",
        "Bytes of chunk files on the shelf, as who evicts knows them; 0 from others. 100 "
        "namespaces have a series each, the rest is `other`.",
        "namespace",
    ),
    _gauge(
        EVICT_HELD,
        "files",
        "Chunk files that the file system refused to remove, as the evictor knows them. They are "
        "tried again after a minute.",
    ),
    _gauge(
        SHELF_CHUNKS,
        "files",
        "Chunk files on the shelf, of the same namespaces. Reported by the lease holder; 0 from "
        "others.",
        "namespace",
    ),
    _gauge(
        VOLUME_USED_BYTES,
        "bytes",
        "Bytes of the root's file system that are used. Reported by the lease holder; 0 from "
        "others.",
        "root",
    ),
    _gauge(
        VOLUME_TOTAL_BYTES,
        "bytes",
        "Bytes of the root's file system, used or free. Reported by the lease holder; 0 from "
        "others.",
        "root",
    ),
    _gauge(
        EVICT_STATE,
        "state",
        "0 within limits, 1 scanning, 2 evicting, 3 a limit is exceeded and nothing more may go, "
        "4 within limits as far as is known, but folders could not be looked into. Reported by "
        "the lease holder; 0 from others.",
        "root",
    ),
    _gauge(
        EVICT_LEASE_HELD,
        "state",
        "1: this process evicts in the root. 0: it waits for the lease.",
        "root",
    ),
)

# What an evictor that runs by itself shows on a port of its own (docs/explain/eviction.md).
EVICT_METRICS: tuple[Metric, ...] = (
    *_EVICTED,
    _counter(
        EVICT_SPARED,
        "files",
        "Chunk files that were to go, and stayed because they were used meanwhile.",
    ),
    _gauge(SHELF_FOREIGN, "files", "Entries on the shelf that are not kvshelf's."),
)

METRICS: tuple[Metric, ...] = (
    _counter(LOOKUPS, "keys", "Keys probed on the shelf, by result.", "result"),
    _histogram(
        LOOKUP_SECONDS,
        "seconds",
        "Time from asking for a batch of keys to its answer.",
        _LOOKUP_BUCKETS,
    ),
    _counter(LOAD_CHUNKS, "chunks", "Chunks loaded and verified."),
    _counter(LOAD_BYTES, "bytes", "KV bytes loaded and verified."),
    _histogram(
        LOAD_SECONDS, "seconds", "Time from submitting a load job to its end.", _TRANSFER_BUCKETS
    ),
    _counter(
        LOAD_FAILURES,
        "chunks",
        "Chunks that failed to load and were recomputed, by cause.",
        "cause",
    ),
    _counter(STORE_BYTES, "bytes", "KV bytes of chunks that are on the shelf now."),
    _histogram(
        STORE_SECONDS,
        "seconds",
        "Time from submitting a store job to its last file's publication.",
        _TRANSFER_BUCKETS,
    ),
    _counter(
        STORE_OUTCOMES,
        "chunks",
        "Chunks offered for storing, by outcome: published, or why not.",
        "outcome",
    ),
    _counter(HEALED_CHUNKS, "chunks", "Chunks that had failed to load and are on the shelf again."),
    _gauge(REMOVED_BAD, "chunks", "Damaged or foreign chunk files removed so far."),
    _gauge(STORED_PAYLOAD_BYTES, "bytes", "KV bytes of chunks published so far."),
    _gauge(
        STORED_FILE_BYTES,
        "bytes",
        "Bytes of the files of those: about three quarters where KV is packed (compress).",
    ),
    _gauge(WRITE_BUFFER_BYTES, "bytes", "Staging memory that holds unwritten stores."),
    _gauge(QUEUE_FILES, "files", "Files waiting for a thread, by kind.", "kind"),
    _gauge(
        BREAKER_STATE,
        "state",
        "Whether a root is left alone: 0 no, 1 one request tries it, 2 yes.",
        "side",
        "root",
    ),
    _counter(BREAKER_OPENINGS, "times", "How often a root began to be left alone.", "side", "root"),
    _counter(
        REFUSED_HIT_TOKENS,
        "tokens",
        "Tokens on the shelf that were computed all the same: sooner than loaded, or too few.",
    ),
    _counter(
        REQUESTS_LEFT_ALONE,
        "requests",
        "Requests that kvshelf neither loads nor stores, by reason "
        "(docs/howto/share-and-why-not.md).",
        "reason",
    ),
    _gauge(
        WEIGHTS_KNOWN,
        "state",
        "1: loads and stores go on. 0: kvshelf does not know the weights of vLLM's KV, and waits "
        "for a reset of vLLM's prefix cache (docs/howto/change-weights.md).",
    ),
    _counter(
        WEIGHT_EPOCHS, "epochs", "Changes of weights after which this engine uses other chunks."
    ),
    _counter(
        AUDIT_CHUNKS,
        "files",
        "Chunk files compared with what was computed, by result: equal, within_tolerance, "
        "different, or skipped.",
        "result",
    ),
    _histogram(
        AUDIT_DISTANCE,
        "tolerances",
        "How far stored values are from computed ones, at worst in a chunk file, in units of the "
        "tolerance: above 1 is different.",
        _DISTANCE_BUCKETS,
    ),
    _counter(AUDIT_TOKENS, "tokens", "Tokens of hits that were computed for audits."),
    _gauge(
        AUDIT_OFF,
        "state",
        "1: this engine neither loads nor stores, because audits found audit_failures_max files "
        "that differ. Reported by engines that audit only.",
    ),
    *_EVICTED,
    _gauge(
        EVICT_DURATION,
        "seconds",
        "Time that this engine's last eviction took, from exceeding a limit to the low mark.",
    ),
    _counter(
        GONE_KEYS,
        "keys",
        "Keys of this engine's namespace that were reported as evicted, by anybody.",
    ),
    _gauge(HUNG_THREADS, "threads", "I/O threads that the storage does not let go."),
)
