"""The ``--json`` documents of all commands: which fields they have, of which types."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kvshelf.cli.main import main
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from tests.cli.shapes import shape
from tests.plan.traces import BLOCK_TOKENS, conversations, write_mooncake
from tests.upkeep.census.test_census import put

GOLDEN = Path(__file__).with_name("documents.json")
ONE = Identity({"model": "one", "dtype": "bfloat16", "engine": "vllm-0.32"})
TWO = Identity({"model": "two", "dtype": "float16", "engine": "vllm-0.32"})
# Objects whose members are named by data.
FREE = {
    "bench": ["rows[].more"],
    "diff": ["differences[].left", "differences[].right"],
    "doctor": ["rows[].more", "settings"],
    "evict": ["namespaces", "faults", "held.errnos"],
    "identities": ["namespaces[].identity"],
    "scrub": ["summary.findings"],
    "top": ["counters"],
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = open_root(tmp_path_factory.mktemp("documents") / "shelf")
    for identity in (ONE, TWO):
        open_namespace(root, identity)
        for number in range(3):
            put(root, identity.folder, number)
    (root / "broken-000000000000").mkdir()
    (root / "broken-000000000000" / "namespace.json").write_text("{")
    (root / "notes.txt").write_text("mine")
    return root


@pytest.fixture
def url() -> Iterator[str]:
    """A server's metrics."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(
                b'# TYPE kvshelf:lookups counter\nkvshelf:lookups_total{result="hit"} 3.0\n'
            )

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def lines(name: str, root: Path, tmp_path: Path, url: str) -> list[list[str]]:
    """Calls that show all fields of a document."""
    shelf = str(root)
    if name == "plan":
        trace = write_mooncake(tmp_path / "trace.jsonl", conversations(40))
        line = ["plan", str(trace), "--block-tokens", str(BLOCK_TOKENS)]
        prices = ["--gpu-hour-price", "2", "--gb-month-price", "0.1"]
        replay = ["--replay", str(tmp_path / "replay"), "--replay-requests", "20"]
        return [line, [*line, *prices, *replay]]
    small = ["--size", "4MB", "--chunk-size", "2MB", "--threads", "1", "--rounds", "1"]
    (tmp_path / "bare").mkdir()
    calls = {
        "bench": [["bench", str(tmp_path / "bare"), *small]],
        "diff": [["diff", shelf, "one", "two"]],
        "doctor": [["doctor", str(tmp_path / "bare"), "--size", "32MB"]],
        "evict": [["evict", shelf, "--shelf-limit", "1", "--dry-run"]],
        "ls": [["ls", shelf]],
        "identities": [["ls", shelf, "--identities"]],
        "scrub": [["scrub", shelf, "--dry-run"]],
        "top": [
            ["top", shelf, "--once", "--every", "0.01", "--metrics", url],
            ["top", shelf, "--once", "--every", "0.01", "--metrics", "http://127.0.0.1:9/"],
        ],
    }
    return calls[name]


def printed(line: list[str], capsys: pytest.CaptureFixture[str]) -> list[Any]:
    assert main([*line, "--json"]) in (0, 1)
    text = capsys.readouterr().out
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(each) for each in text.splitlines()]


@pytest.mark.parametrize("name", json.loads(GOLDEN.read_text(encoding="utf-8")))
def test_no_field_comes_or_goes_unseen(
    name: str, shelf: Path, tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, set[str]] = {}
    for line in lines(name, shelf, tmp_path, url):
        for document in printed(line, capsys):
            for path, types in shape(document, FREE.get(name, ())).items():
                found.setdefault(path, set()).update(types)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert {path: sorted(types) for path, types in found.items()} == golden
