"""What an evictor has done, for Prometheus: /metrics and /healthz over HTTP."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from kvshelf import metrics
from kvshelf.errors import ResourceError
from kvshelf.evict.report import Report, State
from kvshelf.threads import start

_STATES = (State.IDLE, State.SCANNING, State.EVICTING, State.STUCK)
# A step that takes longer hangs in the storage: it should take a second.
HEALTHY_SECONDS = 60.0
# What a kernel without IPv6, or with ipv6.disable, says.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENOPROTOOPT, errno.EINVAL)


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
    spaces = [(f'{{namespace="{name}"}}', amount) for name, amount in report.usage.items()]
    return {
        metrics.SHELF_CHUNKS: [(labels, amount.files) for labels, amount in spaces],
        metrics.SHELF_BYTES: [(labels, amount.bytes) for labels, amount in spaces],
        metrics.SHELF_FOREIGN: [("", report.foreign)],
        metrics.VOLUME_USED_BYTES: [("", report.volume.used_bytes)],
        metrics.VOLUME_TOTAL_BYTES: [("", report.volume.total_bytes)],
        metrics.EVICT_STATE: [("", _STATES.index(report.state))] if report.state in _STATES else [],
    }


class _Server(ThreadingHTTPServer):
    """One socket for IPv6 and IPv4 (ipv6(7), IPV6_V6ONLY), or for the one that there is."""

    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        # Before: the base class makes the socket.
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's own: it asks a name server who we are, and may wait for it.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "kvshelf", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread is to be had: others wait for this answer
            self.process_request_thread(request, client_address)


def _server(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> _Server:
    """
    Raises:
        OSError: the port cannot be had.
    """
    if host:
        return _Server(host, port, handler)
    try:
        return _Server("::", port, handler)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
        return _Server("0.0.0.0", port, handler)  # noqa: S104 - all addresses are meant


def serve(exposition: Exposition, port: int, host: str = "") -> ThreadingHTTPServer:
    """Answer on the port, in a thread of its own, until the server's ``shutdown``.

    Args:
        port: 0 takes a free one: ``server_address`` of the result says which.
        host: an address; "": all of this host's, of IPv6 and IPv4.

    Raises:
        OSError: the port cannot be had.
        ResourceError: no thread is to be had.
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

    server = _server(host, port, Handler)
    try:
        start(threading.Thread(target=server.serve_forever, name="kvs-metrics", daemon=True))
    except ResourceError:
        server.server_close()
        raise
    return server
