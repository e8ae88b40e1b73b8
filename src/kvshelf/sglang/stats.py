"""Metrics of kvshelf on SGLang's /metrics, by prometheus_client.

SGLang's server collects from the files of all its processes (``PROMETHEUS_MULTIPROC_DIR``), so what
is counted in the scheduler's process shows up there.
"""

from __future__ import annotations

import functools
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from kvshelf.metrics import BREAKER_STATE, METRICS, Kind, Metric


@functools.cache
def _collectors() -> dict[str, Any]:
    """One of each a process: prometheus_client takes a name once."""
    return {metric.name: _collector(metric) for metric in METRICS}


def _collector(metric: Metric) -> Any:
    if metric.kind is Kind.COUNTER:
        return Counter(metric.name, metric.help, metric.labels)
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets or ())
    mode = "livemax" if metric.name == BREAKER_STATE else "livesum"
    return Gauge(metric.name, metric.help, metric.labels, multiprocess_mode=mode)


class Stats:
    """Counts by name of ``kvshelf.metrics``. Threads: any."""

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        self._of(name, labels).inc(by)

    def observe(self, name: str, value: float, *labels: str) -> None:
        self._of(name, labels).observe(value)

    def gauge(self, name: str, value: float, *labels: str) -> None:
        self._of(name, labels).set(value)

    def _of(self, name: str, labels: tuple[str, ...]) -> Any:
        collector = _collectors()[name]
        return collector.labels(*labels) if labels else collector
