"""What others build on: the names of the public API and of the metrics. A change is a decision."""

from __future__ import annotations

import kvshelf
from kvshelf.metrics import EVICT_METRICS, METRICS

PUBLIC = """
Chunk
ChunkFormatError
ChunkKey
ConfigError
EngineClosedError
EngineConfig
FileStatus
GroupMemory
Identity
JobResult
KvshelfError
NotAShelfError
Pages
Phase
Settings
Shelf
make_key
"""

METRIC_NAMES = """
kvshelf:audit_chunks counter result
kvshelf:audit_distance histogram
kvshelf:audit_off gauge
kvshelf:audit_tokens counter
kvshelf:breaker_openings counter side,root
kvshelf:breaker_state gauge side,root
kvshelf:evict_faults counter errno
kvshelf:evict_held_chunks gauge
kvshelf:evict_lease_held gauge root
kvshelf:evict_no_effect counter limit
kvshelf:evict_pass_seconds gauge
kvshelf:evict_room_requests counter
kvshelf:evict_spared_chunks counter
kvshelf:evict_state gauge root
kvshelf:evicted_bytes counter
kvshelf:evicted_chunks counter
kvshelf:evicted_temp_bytes counter
kvshelf:evicted_temp_files counter
kvshelf:gone_keys counter
kvshelf:healed_chunks counter
kvshelf:hung_threads gauge
kvshelf:load_bytes counter
kvshelf:load_chunks counter
kvshelf:load_failures counter cause
kvshelf:load_seconds histogram
kvshelf:lookup_seconds histogram
kvshelf:lookups counter result
kvshelf:queue_files gauge kind
kvshelf:refused_hit_tokens counter
kvshelf:removed_bad_chunks gauge
kvshelf:requests_left_alone counter reason
kvshelf:shelf_bytes gauge namespace
kvshelf:shelf_chunks gauge namespace
kvshelf:shelf_foreign_files gauge
kvshelf:store_bytes counter
kvshelf:store_outcomes counter outcome
kvshelf:store_seconds histogram
kvshelf:stored_file_bytes gauge
kvshelf:stored_payload_bytes gauge
kvshelf:volume_total_bytes gauge root
kvshelf:volume_used_bytes gauge root
kvshelf:weight_epochs counter
kvshelf:weights_known gauge
kvshelf:write_buffer_used_bytes gauge
"""


def test_the_public_names() -> None:
    assert kvshelf.__all__ == PUBLIC.split()


def test_the_metrics_names_kinds_and_labels() -> None:
    found = {
        f"{each.name} {each.kind.name.lower()} {','.join(each.labels)}".strip()
        for each in (*METRICS, *EVICT_METRICS)
    }
    assert sorted(found) == METRIC_NAMES.strip().splitlines()
