"""What an evictor has done, for Prometheus: /metrics and /healthz over HTTP."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kvshelf import metrics
from kvshelf.disk.threads import start
from kvshelf.errors import ResourceError
from kvshelf.upkeep.evict.report import STATES, Report
from kvshelf.upkeep.evict.series import with_own_series

# A step that takes longer hangs in the storage: it should take a second.
HEALTHY_SECONDS = 60.0
# What a kernel without IPv6, or with ipv6.disable, says.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENOPROTOOPT, errno.EINVAL)


class Exposition:
    """Sums up reports, as a collector of prometheus_client. Thread-safe.

    Args:
        root: what the series of a root say.
    """

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._is_holder: bool | None = None  # until the lease was looked at
        self._is_shown = False
        self._waits_for = ""
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, str]] = Counter()
        self._report: Report | None = None
        self._last_step = time.monotonic()
        self._failing_since: float | None = None
        self._reason = self._last_error = ""

    def add(self, report: Report) -> None:
        with self._lock:
            requests = report.room_requests - (self._report.room_requests if self._report else 0)
            self._counters[metrics.ROOM_REQUESTS, ""] += max(0, requests)
            for limit in report.unfreed.keys() - (self._report.unfreed if self._report else {}):
                self._counters[metrics.EVICT_NO_EFFECT, limit] += 1
            self._report = report
            self._is_holder = self._is_shown = True
            self._waits_for = ""
            self._last_step = time.monotonic()
            is_refused = errno.EROFS in report.faults and not report.removed
            self._fails(f"the root cannot be written: {os.strerror(errno.EROFS)}" * is_refused)
            self._counters[metrics.EVICT_TEMP_FILES, ""] += report.leftovers.files
            self._counters[metrics.EVICT_TEMP_BYTES, ""] += report.leftovers.bytes
            self._counters[metrics.EVICTED_CHUNKS, ""] += report.removed.files
            self._counters[metrics.EVICTED_BYTES, ""] += report.removed.bytes
            self._counters[metrics.EVICT_SPARED, ""] += report.spared
            for number, times in report.faults.items():
                name = errno.errorcode.get(number, str(number))
                self._counters[metrics.EVICT_FAULTS, name] += times

    def waits(self, reason: str = "", holder: str = "") -> None:
        """Nothing is done: another evicts, and all is well, or nobody can for this reason.

        Args:
            holder: the process that holds the lease; "" if it is not known.
        """
        with self._lock:
            self._is_holder = self._is_shown = False
            self._waits_for = holder
            self._last_step = time.monotonic()
            self._fails(reason)

    def stands_back(self) -> None:
        """The lease was left, because nothing could be done: what was seen last is still shown."""
        with self._lock:
            self._is_holder = False

    def fault(self, error: Exception) -> None:
        number = error.errno if isinstance(error, OSError) else None
        name = errno.errorcode.get(number or 0, "other")
        with self._lock:
            self._counters[metrics.EVICT_FAULTS, name] += 1
            self._last_error = str(error)

    def health(self) -> str:
        """Why this evictor cannot do its work, for a minute now; "" if it can."""
        with self._lock:
            now = time.monotonic()
            if now - self._last_step >= HEALTHY_SECONDS:
                return self._last_error or "the storage does not answer"
            if self._failing_since is None or now - self._failing_since < HEALTHY_SECONDS:
                return ""
            return self._reason

    def state(self) -> str:
        """What ``/healthz`` says of an evictor that is well."""
        with self._lock:
            holder = self._waits_for
        return f"ok: waits, {holder} holds the lease" if holder else "ok"

    def _fails(self, reason: str) -> None:
        self._reason = reason
        if not reason:
            self._failing_since = None
            self._last_error = ""
        elif self._failing_since is None:
            self._failing_since = time.monotonic()

    def text(self) -> str:
        """All metrics. Prometheus's names have a colon here as on vLLM's own page."""
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - heavy

        return str(generate_latest(self).decode())

    def collect(self) -> Iterator[Any]:
        """The metrics, as prometheus_client asks for them."""
        with self._lock:
            values: dict[str, list[tuple[str, float]]] = {}
            for (name, label), value in self._counters.items():
                values.setdefault(name, []).append((label, value))
            if self._report is not None and self._is_shown:
                values.update(_gauges(self._report, self._root))
            if self._is_holder is not None:
                values[metrics.EVICT_LEASE_HELD] = [(self._root, float(self._is_holder))]
        for metric in metrics.EVICT_METRICS:
            yield _family(metric, values.get(metric.name, ()))


def _family(metric: metrics.Metric, values: Iterable[tuple[str, float]]) -> Any:
    """Values by the metric's one label; by "" if it has none."""
    from prometheus_client import core  # noqa: PLC0415

    is_counter = metric.kind is metrics.Kind.COUNTER
    kind = core.CounterMetricFamily if is_counter else core.GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for label, value in values:
        family.add_metric([label] if metric.labels else [], value)
    return family


def _gauges(report: Report, root: str) -> dict[str, list[tuple[str, float]]]:
    shown = with_own_series(report.usage)
    volume = report.volume
    found: dict[str, list[tuple[str, float]]] = {
        metrics.SHELF_CHUNKS: [(name, amount.files) for name, amount in shown.items()],
        metrics.SHELF_BYTES: [(name, amount.bytes) for name, amount in shown.items()],
        metrics.EVICT_HELD: [("", report.held.amount.files)],
        metrics.SHELF_FOREIGN: [("", report.foreign)],
        metrics.EVICT_STATE: [(root, STATES.index(report.state))] if report.state in STATES else [],
    }
    if volume.counts_bytes:  # else no sample: 0 of 0 would look like a number
        found[metrics.VOLUME_USED_BYTES] = [(root, volume.used_bytes)]
        found[metrics.VOLUME_TOTAL_BYTES] = [(root, volume.total_bytes)]
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        # Not bound by the base class: it asks a name server who we are, and may wait for it.
        super().__init__(listening.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread is to be had: others wait for this answer
            self.process_request_thread(request, client_address)


def _listening(port: int) -> socket.socket:
    """One socket for IPv6 and IPv4 (ipv6(7), IPV6_V6ONLY), or for IPv4 if there is no other."""
    if not 0 <= port < 1 << 16:
        raise OverflowError("a port is 0 to 65535")
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    return socket.create_server(("", port))


def serve(exposition: Exposition, port: int) -> ThreadingHTTPServer:
    """Answer on all of this host's addresses, in a thread of its own, until the server's
    ``shutdown``.

    Args:
        port: 0 takes a free one: ``server_address`` of the result says which.

    Raises:
        OSError: the port cannot be had.
        ResourceError: no thread is to be had.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(HTTPStatus.OK, exposition.text())
            elif self.path == "/healthz":
                reason = exposition.health()
                status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
                self._answer(status, f"{reason or exposition.state()}\n")
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

    server = _Server(_listening(port), Handler)
    try:
        start(threading.Thread(target=server.serve_forever, name="kvs-metrics", daemon=True))
    except ResourceError:
        server.server_close()
        raise
    return server
