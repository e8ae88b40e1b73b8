"""What an evictor has done, for Prometheus: /metrics and /healthz over HTTP."""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kvshelf import metrics
from kvshelf.evict.report import Report, State
from kvshelf.evict.series import with_own_series

_STATES = (State.IDLE, State.SCANNING, State.EVICTING, State.STUCK, State.BLIND)
# A step that takes longer hangs in the storage: it should take a second.
HEALTHY_SECONDS = 60.0


class Exposition:
    """Sums up reports, and writes them in Prometheus's text format. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, str]] = Counter()
        self._report: Report | None = None
        self._last_step = time.monotonic()

    def add(self, report: Report) -> None:
        """Count one step."""
        with self._lock:
            self._report = report
            self._last_step = time.monotonic()
            self._counters[metrics.EVICTED_CHUNKS, ""] += report.removed.files
            self._counters[metrics.EVICTED_BYTES, ""] += report.removed.bytes
            self._counters[metrics.EVICT_SPARED, ""] += report.spared
            for number, times in report.faults.items():
                name = errno.errorcode.get(number, str(number))
                self._counters[metrics.EVICT_FAULTS, f'{{errno="{name}"}}'] += times

    def waits(self) -> None:
        """Another evicts: nothing is done, and all is well."""
        with self._lock:
            self._last_step = time.monotonic()

    def healthy(self) -> bool:
        """Whether a step has ended lately."""
        with self._lock:
            return time.monotonic() - self._last_step < HEALTHY_SECONDS

    def text(self) -> str:
        """All metrics. Prometheus's names have a colon here as on vLLM's own page."""
        with self._lock:
            values: dict[str, list[tuple[str, float]]] = {}
            for (name, labels), value in self._counters.items():
                values.setdefault(name, []).append((labels, value))
            if self._report is not None:
                values.update(_gauges(self._report))
        lines = []
        for metric in metrics.EVICT_METRICS:
            counter = metric.kind is metrics.Kind.COUNTER
            shown = f"{metric.name}_total" if counter else metric.name
            lines.append(f"# HELP {shown} {metric.help}")
            lines.append(f"# TYPE {shown} {metric.kind.value}")
            lines += [f"{shown}{labels} {value}" for labels, value in values.get(metric.name, ())]
        return "\n".join(lines) + "\n"


def _gauges(report: Report) -> dict[str, list[tuple[str, float]]]:
    # Folders' names are safe in quotes: kvshelf.layout.is_namespace_folder.
    shown = with_own_series(report.usage)
    spaces = [(f'{{namespace="{name}"}}', amount) for name, amount in shown.items()]
    return {
        metrics.SHELF_CHUNKS: [(labels, amount.files) for labels, amount in spaces],
        metrics.SHELF_BYTES: [(labels, amount.bytes) for labels, amount in spaces],
        metrics.EVICT_HELD: [("", report.held.amount.files)],
        metrics.SHELF_FOREIGN: [("", report.foreign)],
        metrics.VOLUME_USED_BYTES: [("", report.volume.used_bytes)],
        metrics.VOLUME_TOTAL_BYTES: [("", report.volume.total_bytes)],
        metrics.EVICT_STATE: [("", _STATES.index(report.state))] if report.state in _STATES else [],
    }


def serve(exposition: Exposition, port: int, host: str = "") -> ThreadingHTTPServer:
    """Answer on the port, in a thread of its own, until the server's ``shutdown``.

    Args:
        port: 0 takes a free one: ``server_address`` of the result says which.

    Raises:
        OSError: the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(HTTPStatus.OK, exposition.text())
            elif self.path == "/healthz":
                good = exposition.healthy()
                status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, "ok\n" if good else "the storage does not answer\n")
            else:
                self._answer(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz\n")

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Scrapes are not worth a line."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="kvs-metrics", daemon=True).start()
    return server
