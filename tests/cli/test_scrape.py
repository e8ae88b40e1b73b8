"""``kvshelf top --metrics`` against servers that answer what they should not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.cli.main import main
from kvshelf.cli.scrape import ScrapeError, parse, scrape
from kvshelf.disk.root import open_root
from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.exposition import Exposition
from kvshelf.upkeep.evict.limits import Amount
from kvshelf.upkeep.evict.report import Report, State
from tests.cli.usage import refused


class Server:
    """On the loopback; gives every client the same bytes."""

    def __init__(self) -> None:
        self.answer = b""
        self.drips = False
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/metrics"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self.socket.accept()
            with client:
                if not client.recv(65_536):
                    return  # the end of the test
                self._send(client)

    def _send(self, client: socket.socket) -> None:
        client.sendall(self.answer)
        with contextlib.suppress(OSError):  # the client is gone
            while self.drips:
                client.sendall(b"\n")
                time.sleep(0.01)

    def close(self) -> None:
        socket.create_connection(self.socket.getsockname()).close()
        self.thread.join()
        self.socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def page(text: str) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + text.encode()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "BadStatusLine: SSH-2.0"),
        (b"", "closed connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nkvshelf:x 1", "ends 88 bytes too soon"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "more than 100 headers"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[x/\r\n\r\n", ""),
        (page("vllm:num_requests_running 3\n"), "the page has no series of kvshelf"),
        (page("kvshelf:lookups_total NaN\n"), "the page has no series of kvshelf"),
    ],
)
def test_top_goes_on_and_says_that_hits_are_unknown(
    answer: bytes,
    reason: str,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answer = answer
    root = str(open_root(tmp_path / "shelf"))
    line = ["top", root, "--once", "--every", "0.01", "--metrics", server.url]
    assert main(line) == 0
    [hits] = [each for each in capsys.readouterr().out.splitlines() if each.startswith("hits")]
    assert hits.startswith("hits     unknown: ") and reason in hits and len(hits) < 300
    assert main([*line, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["metrics_problem"] and "counters" not in value


@pytest.mark.timeout(60)
def test_a_page_without_end_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte comes in time, and the last one never."""
    monkeypatch.setattr("kvshelf.cli.scrape._TIMEOUT_SECONDS", 0.2)
    server.answer, server.drips = page("kvshelf:lookups_total 1\n"), True
    with pytest.raises(ScrapeError, match=r"not whole after 0\.2 s"):
        scrape(server.url)


@pytest.mark.parametrize("url", ["http://a b/", "http://x:y/metrics", "http://[x/", "http://é.\n/"])
def test_an_impossible_url_is_a_reason(url: str) -> None:
    with pytest.raises(ScrapeError) as caught:
        scrape(url)
    assert str(caught.value)


def test_numbers_that_json_does_not_have_are_left_out(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> float:
        raise AssertionError(name)

    server.answer = page(
        'kvshelf:lookups_total{result="hit"} 3\nkvshelf:lookups_total{result="miss"} NaN\n'
        "kvshelf:odd +Inf\nkvshelf:large 1e308\nkvshelf:large 1e308\n"
    )
    root = str(open_root(tmp_path / "shelf"))
    line = ["top", root, "--once", "--every", "0.01", "--metrics", server.url, "--json"]
    assert main(line) == 0
    value = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert value["counters"] == {"kvshelf:lookups_total/hit": 3, "kvshelf:large": 1e308}


def test_buckets_of_a_histogram_are_not_summed() -> None:
    text = "".join(f'kvshelf:load_seconds_bucket{{le="{le}"}} 5\n' for le in ("0.1", "1", "+Inf"))
    text += "kvshelf:load_seconds_count 5\nkvshelf:load_seconds_sum 0.2\n"
    assert parse(text) == {"kvshelf:load_seconds_count": 5, "kvshelf:load_seconds_sum": 0.2}


def test_lines_that_are_no_samples_are_left_out() -> None:
    """As of a page that is cut off, or not all of which is meant for Prometheus."""
    wrong = (
        "kvshelf:",
        "kvshelf:a",
        "kvshelf:a{",
        'kvshelf:a{b="c',
        'kvshelf:a{b="c"}',
        "kvshelf:a x",
    )
    wrong += (
        'kvshelf:a{result="hit",\t="b"} 1 :2',
        f"kvshelf:a {'9' * 400}",
        "# kvshelf:a 1",
        "<p>",
    )
    text = 'kvshelf:b{result="hit",a="x} y\\""} 2 1700000000000\n'
    assert parse("\n".join([*wrong, text, *wrong])) == {"kvshelf:b/hit": 2}


def test_what_the_evictor_serves_can_be_read() -> None:
    exposition = Exposition()
    usage = {"m-0123456789ab": Amount(3, 10**13 + 7), "n-0123456789ab": Amount(1, 1)}
    exposition.add(Report(State.STUCK, Volume(5, 9), usage=usage, faults={5: 3}, spared=2))
    found = parse(exposition.text())
    assert found["kvshelf:shelf_bytes"] == 10**13 + 8 and found["kvshelf:shelf_chunks"] == 4
    assert found["kvshelf:evict_faults_total"] == 3 and found["kvshelf:evict_state"] == 3
    assert found["kvshelf:evict_spared_chunks_total"] == 2
    assert found["kvshelf:volume_total_bytes"] == 9


@pytest.mark.parametrize("seconds", ["1e18", "inf", "nan", "0"])
def test_looks_are_a_day_apart_at_most(
    seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(open_root(tmp_path / "shelf"))
    said = refused(["top", root, "--once", "--every", seconds], capsys)
    assert f"--every: '{seconds}': allowed is a duration from 1ms to 1d" in said
