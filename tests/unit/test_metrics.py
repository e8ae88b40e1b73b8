"""The metrics' definitions, without vLLM and Prometheus."""

from __future__ import annotations

import re

import pytest

from kvshelf import metrics
from kvshelf.engine import EngineStats
from kvshelf.engine.gauges import engine_gauges
from kvshelf.metrics import (
    AUDIT_OFF,
    BREAKER_STATE,
    EVICT_DURATION,
    EVICT_HELD,
    EVICT_LEASE_HELD,
    EVICT_METRICS,
    EVICT_STATE,
    METRICS,
    SHELF_BYTES,
    SHELF_CHUNKS,
    VOLUME_TOTAL_BYTES,
    VOLUME_USED_BYTES,
    WEIGHTS_KNOWN,
    Kind,
    Metric,
)

ALL = tuple(dict.fromkeys((*METRICS, *EVICT_METRICS)))  # some are in both
BY_NAME = {metric.name: metric for metric in ALL}


def test_names_are_unique_also_as_prometheus_shows_them() -> None:
    assert len(BY_NAME) == len(ALL)
    suffixes = {
        Kind.COUNTER: ("_total", "_created"),
        Kind.GAUGE: ("",),
        Kind.HISTOGRAM: ("_bucket", "_count", "_sum", "_created"),
    }
    series = [metric.name + suffix for metric in ALL for suffix in suffixes[metric.kind]]
    assert len(set(series)) == len(series)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_each_definition_is_sound(metric: Metric) -> None:
    assert re.fullmatch(r"kvshelf:[a-z]+(_[a-z]+)*", metric.name)
    assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert metric.unit and metric.help.endswith(".") and "|" not in metric.help
    assert all(re.fullmatch(r"[a-z]+", label) for label in metric.labels)
    assert len(set(metric.labels)) == len(metric.labels)
    assert (metric.buckets is not None) == (metric.kind is Kind.HISTOGRAM)
    if metric.buckets is not None:
        assert list(metric.buckets) == sorted(set(metric.buckets)) and metric.buckets[0] > 0


def test_every_name_in_the_module_is_defined() -> None:
    names = {value for name, value in vars(metrics).items() if str(value).startswith("kvshelf:")}
    assert names == set(BY_NAME)


def test_an_engine_gives_every_gauge() -> None:
    stats = EngineStats(
        *(1, 2, 3, 4, 5, 6), removed_bad=7, stored_payload_bytes=8, stored_file_bytes=9
    )
    gauges = {(name, labels): value for name, labels, value in engine_gauges(stats)}
    assert gauges == {
        ("kvshelf:queue_files", ("load",)): 1,
        ("kvshelf:queue_files", ("store",)): 2,
        ("kvshelf:queue_files", ("lookup",)): 3,
        ("kvshelf:queue_files", ("touch",)): 4,
        ("kvshelf:write_buffer_used_bytes", ()): 5,
        ("kvshelf:hung_threads", ()): 6,
        ("kvshelf:removed_bad_chunks", ()): 7,
        ("kvshelf:stored_payload_bytes", ()): 8,
        ("kvshelf:stored_file_bytes", ()): 9,
    }
    # The scheduler's and eviction's.
    others = {AUDIT_OFF, WEIGHTS_KNOWN, BREAKER_STATE, SHELF_BYTES}
    others |= {EVICT_LEASE_HELD, EVICT_DURATION, EVICT_HELD, EVICT_STATE, SHELF_CHUNKS}
    others |= {VOLUME_USED_BYTES, VOLUME_TOTAL_BYTES}
    assert {n for n, _ in gauges} | others == {m.name for m in METRICS if m.kind is Kind.GAUGE}
    assert all(len(labels) == len(BY_NAME[name].labels) for name, labels in gauges)
