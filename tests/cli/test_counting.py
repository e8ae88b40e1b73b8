"""``kvshelf ls`` and ``top``, in process and as users run them."""

from __future__ import annotations

import http.server
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.cli.main import main
from kvshelf.cli.scrape import parse
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from kvshelf.text import age_text, bytes_text
from tests.cli.usage import refused
from tests.upkeep.census.test_census import put

BIG = Identity({"model": "org/big", "dtype": "bfloat16", "cache_dtype": "fp8"})
SMALL = Identity({"model": "org/small", "dtype": "float16", "cache_dtype": "auto"})
HOUR = 3600


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    root = open_root(tmp_path / "shelf")
    for identity in (BIG, SMALL):
        open_namespace(root, identity)
    for rank in (0, 1):
        for number in range(10):
            path = put(root, BIG.folder, number, rank=rank, size=100_000)
            os.utime(path, (time.time() - 2 * HOUR, time.time() - 72 * HOUR))
    put(root, SMALL.folder, 1, size=8192)
    (root / BIG.folder / "tmp" / "a.tmp").write_bytes(bytes(5000))
    return root


def test_ls_lists_namespaces(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(shelf.rglob("*"))
    assert main(["ls", str(shelf)]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "NAMESPACE",
        "MODEL",
        "DTYPE",
        "RANKS",
        "FILES",
        "BYTES",
        "STORED",
        "USED",
    ]
    assert re.split(r"  +", rows[0])[:6] == [BIG.folder, "org/big", "fp8", "2", "20", "2.00 MB"]
    assert re.split(r"  +", rows[0])[6:] == ["2.9 d / 2.9 d / 2.9 d", "2.0 h / 2.0 h / 2.0 h"]
    assert re.split(r"  +", rows[1])[:6] == [
        SMALL.folder,
        "org/small",
        "float16",
        "1",
        "1",
        "8.19 kB",
    ]
    assert last == "exact" and sorted(shelf.rglob("*")) == before


def test_ls_json(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shelf / SMALL.folder / "namespace.json").write_text("{")
    assert main(["ls", "--json", str(shelf)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["exact"] and value["folders"] == value["folders_counted"]
    assert value["total"]["files"] == {"value": 21, "error": 0}
    big, small = value["namespaces"]
    assert (big["model"], big["dtype"]) == ("org/big", "fp8")
    assert [rank["rank"] for rank in big["ranks"]] == [0, 1]
    assert big["bytes"] == {"value": 2_000_000, "error": 0}
    assert big["used_seconds_ago"]["p50"] == pytest.approx(2 * HOUR, rel=0.1)
    assert small["model"] is None and small["files"]["value"] == 1


def test_sizes_say_what_takes_room(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--sizes", str(shelf)]) == 0
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:7] == [
        ["BYTES", "SHARE", "FILES", "WHERE"],
        ["2.00 MB", "99.6%", "20", BIG.folder],
        ["1.00 MB", "49.8%", "10", "rank 0"],
        ["1.00 MB", "49.8%", "10", "rank 1"],
        ["5.00 kB", "temp files"],
        ["8.19 kB", "0.4%", "1", SMALL.folder],
        ["2.01 MB", "100.0%", "21", "all"],
    ]
    assert lines[7] == ["exact"] and lines[8][0].endswith("free on the file system")
    assert main(["ls", str(shelf), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["namespaces"][0]["temp_bytes"] == 5000 and value["free_bytes"] > 0
    assert [rank["files"]["value"] for rank in value["namespaces"][0]["ranks"]] == [10, 10]


@pytest.mark.parametrize("view", [[], ["--sizes"]])
def test_without_time_it_is_an_estimate_that_says_so(
    tmp_path: Path, view: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = open_root(tmp_path / "shelf")
    for number in range(50):
        put(root, BIG.folder, number)
    assert main(["ls", *view, str(root), "--for", "0"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"estimated from 1 of \d+ folders; with 95% confidence the total is ", out)
    assert "~" in out and "+-" in out
    assert main(["ls", *view, str(root), "--for", "0", "--exact"]) == 0
    out = capsys.readouterr().out
    assert "\nexact\n" in out and "~" not in out
    assert main(["ls", *view, str(root), "--for", "0", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert not value["exact"] and value["total"]["files"]["error"] > 0


@pytest.mark.parametrize("command", ["ls", "top"])
def test_what_is_no_shelf_is_refused(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path)]) == 10
    assert "no shelf" in capsys.readouterr().err
    root = open_root(tmp_path / "shelf")
    option = "--every" if command == "top" else "--for"
    assert f"argument {option}: '-1': allowed is" in refused(
        [command, str(root), option, "-1"], capsys
    )


def test_an_empty_shelf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = open_root(tmp_path / "shelf")
    assert main(["ls", str(root)]) == 0
    assert capsys.readouterr().out == f"no namespaces in {root}\n"
    assert main(["ls", "--sizes", str(root)]) == 0
    assert "0 B" in capsys.readouterr().out
    assert main(["top", str(root), "--once", "--every", "0.01"]) == 0
    assert "files    0\n" in capsys.readouterr().out


PAGE = """\
# HELP kvshelf:lookups_total Keys probed on the shelf, by result.
# TYPE kvshelf:lookups_total counter
kvshelf:lookups_total{engine="0",result="hit"} 30.0
kvshelf:lookups_total{engine="1",result="hit"} 6e1
kvshelf:lookups_total{engine="0",result="miss"} 10
kvshelf:load_bytes_total{engine="0"} 4096 1700000000
vllm:num_requests_running{engine="0"} 3
"""


def test_a_metrics_page_is_read() -> None:
    assert parse(PAGE + "kvshelf:odd{ 7\nkvshelf:odd x\n") == {
        "kvshelf:lookups_total/hit": 90.0,
        "kvshelf:lookups_total/miss": 10.0,
        "kvshelf:load_bytes_total": 4096.0,
    }


@pytest.fixture
def metrics() -> Iterator[str]:
    """A server on the loopback that serves PAGE."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_top_once(shelf: Path, metrics: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["top", str(shelf), "--once", "--every", "0.01", "--metrics", f"{metrics}/metrics"]
    assert main(line) == 0
    out = capsys.readouterr().out
    for text in (
        "bytes    2.01 MB\n",
        "files    21\n",
        "stored   0.0 files/s, 2.9 d / 2.9 d / 2.9 d ago",
        "used     2.0 h / 2.0 h / 2.0 h ago (10%/50%/90% of files)\n",
        "evicted  0.0 files/s\n",
        "hits     90 of 100 keys, 90.0%\n",
    ):
        assert text in out
    assert "\x1b" not in out
    assert main([*line, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["files"] == {"value": 21, "error": 0} and value["share_of_folders"] == 1
    assert (value["hit_keys"], value["lookup_keys"]) == (90, 100)
    assert value["stored_per_second"] == {"value": 0, "error": 0}


@pytest.mark.parametrize("path", ["/other", None])
def test_a_server_that_does_not_answer_is_no_error(
    shelf: Path, path: str | None, metrics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{metrics}{path}" if path else "http://127.0.0.1:9/metrics"
    line = ["top", str(shelf), "--once", "--every", "0.01", "--metrics", url]
    assert main(line) == 0
    assert re.search(r"hits     unknown: (Not Found|.*refused)", capsys.readouterr().out)
    assert main(["top", str(shelf), "--metrics", "file:///etc/passwd"]) == 2


def test_top_on_a_terminal_is_redrawn_and_ends_with_ctrl_c(shelf: Path) -> None:
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "kvshelf.cli", "top", str(shelf), "--every", "0.05"]
    process = subprocess.Popen(
        line, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    text, deadline = b"", time.monotonic() + 60
    while text.count(b"\x1b[H\x1b[J") < 4 and time.monotonic() < deadline:
        text += os.read(ours, 65_536)
    assert b"files    21" in text and b"\x1b[3" not in text  # no color
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    rest = b""
    try:
        while part := os.read(ours, 65_536):
            rest += part
    except OSError:  # the end, of a terminal
        pass
    assert b"Traceback" not in rest
    os.close(ours)


def test_ls_on_a_terminal_shows_better_estimates_over_the_first(shelf: Path) -> None:
    ours, theirs = pty.openpty()
    code = (
        "import sys; from kvshelf.cli import counting, main; counting._REDRAW_SECONDS = 0;"
        f"sys.exit(main.main(['ls', {str(shelf)!r}, '--exact']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65_536):
            text += part
    except OSError:
        pass
    assert process.wait(30) == 0
    os.close(ours)
    last = text.rpartition(b"\x1b[J")[2].decode()
    assert text.count(b"\x1b[4A\x1b[J") >= 2 and text.count(b"estimated") >= 2
    assert last.splitlines()[-1] == "exact"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (12_340, "12.3 kB"),
        (123e9, "123 GB"),
        (5e18, "5000 PB"),
    ],
)
def test_bytes_are_short(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (5400, "1.5 h"),
        (172_800, "2.0 d"),
        (1e7, "116 d"),
    ],
)
def test_ages_are_short(seconds: float | None, text: str) -> None:
    assert age_text(seconds) == text
