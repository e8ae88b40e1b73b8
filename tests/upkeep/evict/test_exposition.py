"""The metrics port on hosts of both families, of one, and where no thread is to be had."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kvshelf.cli.main import main
from kvshelf.cli.scrape import scrape
from kvshelf.disk.root import open_root
from kvshelf.errors import ResourceError
from kvshelf.upkeep.evict.exposition import Exposition, serve

REPOSITORY = Path(__file__).parents[3]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")


@pytest.fixture
def served() -> Iterator[ThreadingHTTPServer]:
    server = serve(Exposition(), 0)
    yield server
    server.shutdown()
    server.server_close()


def answer(host: str, server: ThreadingHTTPServer) -> str:
    url = f"http://{host}:{server.server_address[1]}/healthz"
    with urllib.request.urlopen(url, timeout=60) as response:
        return str(response.read().decode())


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "[::ffff:127.0.0.1]"])
def test_one_port_answers_both_families(served: ThreadingHTTPServer, host: str) -> None:
    assert answer(host, served) == "ok\n"


@needs_ipv6
def test_a_page_is_scraped_over_ipv6(served: ThreadingHTTPServer) -> None:
    from kvshelf.cli.scrape import ScrapeError

    url = f"http://[::1]:{served.server_address[1]}"
    with pytest.raises(ScrapeError, match="Not Found"):
        scrape(url)
    with pytest.raises(ScrapeError, match="no series"):  # nothing was counted yet
        scrape(f"{url}/metrics")


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_it_is_ipv4s(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A kernel without it refuses the socket, one with ipv6.disable the address."""
    bind = socket.socket.bind

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(number, os.strerror(number))
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", refuse)
    server = serve(Exposition(), 0)
    try:
        assert answer("127.0.0.1", server) == "ok\n"
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_that_is_taken_is_one_error(
    tmp_path: Path, served: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(served.server_address[1])
    assert main(["evict", str(open_root(tmp_path / "s")), "--metrics-port", port]) == 2
    assert f"--metrics-port {port}: " in capsys.readouterr().err


IN_A_HOST = """
import fcntl, pathlib, socket, struct, sys, urllib.request
from kvshelf.upkeep.evict.exposition import Exposition, serve
family = sys.argv[1]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    name = b"lo".ljust(16, b"\\0")
    fcntl.ioctl(control, 0x8914, name + struct.pack("H22x", 0x1 | 0x40))  # SIOCSIFFLAGS: up
    if family == "6":
        fcntl.ioctl(control, 0x8916, name + struct.pack("HH4s8x", 2, 0, bytes(4)))  # no address
if family == "4":
    pathlib.Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
server = serve(Exposition(), 0)
hosts = {"4": "127.0.0.1", "6": "[::1]"}
url = "http://%s:" + str(server.server_address[1]) + "/metrics"
assert urllib.request.urlopen(url % hosts.pop(family), timeout=10).status == 200
try:
    urllib.request.urlopen(url % hosts.popitem()[1], timeout=10)
except OSError:
    print("only", family)
"""


@needs_ipv6
@pytest.mark.parametrize("family", ["4", "6"])
def test_hosts_of_one_family(family: str) -> None:
    """Network namespaces of their own, as a pod's."""
    line = ["unshare", "--net", sys.executable, "-c", IN_A_HOST, family]
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if "Read-only file system" in done.stderr:
        pytest.skip("/proc/sys may not be written")
    assert (done.stdout, done.stderr) == (f"only {family}\n", "")


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_without_a_thread_it_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(ResourceError, match="no thread can be made"):
        serve(Exposition(), 0)


def test_a_running_port_answers_without_more_threads(
    served: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    for _ in range(3):
        assert answer("127.0.0.1", served) == "ok\n"
    assert capfd.readouterr().err == ""
