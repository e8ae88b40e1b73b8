"""Our metrics in vLLM's form: definitions for its registry, increments for its stats payload."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
    OffloadingConnectorStats,
)
from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingHistogramMetadata,
)

from kvshelf import metrics
from kvshelf.vllm.report import WorkerReport


def metric_definitions() -> dict[str, Any]:
    """Every metric of ``kvshelf.metrics`` as vLLM's metadata, by name."""
    definitions: dict[str, Any] = {}
    for metric in metrics.METRICS:
        common = {"documentation": metric.help, "labelnames": metric.labels}
        if metric.kind is metrics.Kind.COUNTER:
            definitions[metric.name] = OffloadingCounterMetadata(**common)
        elif metric.kind is metrics.Kind.GAUGE:
            definitions[metric.name] = OffloadingGaugeMetadata(**common)
        else:
            definitions[metric.name] = OffloadingHistogramMetadata(**common, buckets=metric.buckets)
    return definitions


class StatsSink:
    """Collects increments until vLLM fetches them once a step. Scheduler's thread only."""

    def __init__(self) -> None:
        self._stats = OffloadingConnectorStats()

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        self._stats.increase_counter(name, by, labels)

    def observe(self, name: str, value: float, *labels: str) -> None:
        self._stats.observe_histogram(name, value, labels)

    def gauge(self, name: str, value: float, *labels: str) -> None:
        self._stats.set_gauge(name, value, labels)

    def absorb(self, report: WorkerReport) -> None:
        for (name, labels), value in report.counters.items():
            self._stats.increase_counter(name, value, labels)
        for (name, labels), value in report.gauges.items():
            self._stats.set_gauge(name, value, labels)
        for (name, labels), values in report.samples.items():
            for value in values:
                self._stats.observe_histogram(name, value, labels)

    def take(self) -> OffloadingConnectorStats | None:
        """What was collected since the last call, or None if nothing was."""
        if self._stats.is_empty():
            return None
        stats, self._stats = self._stats, OffloadingConnectorStats()
        return stats
