"""The ``--json`` documents of all commands: which fields they have, of which types."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import kvshelf
from kvshelf.cli.evict_report import as_json
from kvshelf.cli.main import main
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.limits import Amount, Need
from kvshelf.upkeep.evict.report import Held, Report, State
from tests.cli.documents import DOCUMENTS, OBJECTS, Field, fields_of
from tests.cli.shapes import shape
from tests.plan.traces import BLOCK_TOKENS, conversations, write_mooncake
from tests.upkeep.census.test_census import put

ONE = Identity({"model": "one", "dtype": "bfloat16", "engine": "vllm-0.32"})
TIER = Identity({"model": "tier", "tier": {"row_bytes": 4096}})
REPORT = Report(
    State.STUCK,
    Volume.from_statvfs(os.statvfs("/")),
    needs=(Need(Amount(1, 2), "shelf_bytes"), Need(Amount(1, 2), "namespace_bytes", "m-0")),
    unread=("closed",),
    held=Held(Amount(1, 2), {1: 1}, ("a",)),
    unfreed={"volume_percent": 1, "inode_percent": 1},
    foreign=1,
    foreign_examples=("notes.txt",),
)
TWO = Identity({"model": "two", "dtype": "float16", "engine": "vllm-0.32"})


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = open_root(tmp_path_factory.mktemp("documents") / "shelf")
    for identity in (ONE, TWO, TIER):
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
    if name == "kvshelf.plan/1":
        trace = write_mooncake(tmp_path / "trace.jsonl", conversations(40))
        line = ["plan", str(trace), "--block-tokens", str(BLOCK_TOKENS)]
        prices = ["--gpu-hour-price", "2", "--gb-month-price", "0.1"]
        replay = ["--replay", str(tmp_path / "replay"), "--replay-requests", "20"]
        return [line, [*line, *prices, *replay]]
    small = ["--size", "4MB", "--chunk-size", "2MB", "--threads", "1", "--rounds", "1"]
    (tmp_path / "bare").mkdir()
    calls = {
        "kvshelf.bench/1": [["bench", str(tmp_path / "bare"), *small]],
        "kvshelf.diff/1": [["diff", shelf, "one", "two"], ["diff", shelf, "two", "tier"]],
        "kvshelf.doctor/1": [["doctor", str(tmp_path / "bare"), "--size", "32MB"]],
        "kvshelf.evict/1": [["evict", shelf, "--shelf-limit", "1", "--dry-run"]],
        "kvshelf.ls/1": [["ls", shelf]],
        "kvshelf.identities/1": [["ls", shelf, "--identities"]],
        "kvshelf.scrub/1": [["scrub", shelf, "--dry-run"]],
        "kvshelf.top/1": [
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


def declared(name: str) -> dict[str, Field]:
    """The fields of a document by path, with those of objects that recur, and lists' elements."""
    fields = {each.path: each for each in fields_of(name)}
    for path, each in list(fields.items()):
        if each.type.startswith("list of "):
            inner = each.type.removeprefix("list of ")
            fields[f"{path}[]"] = replace(each, path=f"{path}[]", type=inner)
    return {"document": Field("document", "text", "", "", False), **fields}


def types_of(field: Field) -> set[str]:
    """As ``shape`` names them."""
    kind, _, null = field.type.partition(" or ")
    plain = ("text", "number", "boolean", "any")
    base = "list" if kind.startswith("list of ") else kind if kind in plain else "object"
    return {"any"} if kind.startswith("map of ") else {base, *([null] if null else [])}


def shapes(documents: Iterable[Any], name: str) -> dict[str, set[str]]:
    free = [path for path, each in declared(name).items() if types_of(each) == {"any"}]
    found: dict[str, set[str]] = {}
    for value in documents:
        assert value["document"] == name and next(iter(value)) == "document"
        for path, types in shape(value, free).items():
            found.setdefault(path, set()).update(types)
    return found


def check(found: dict[str, set[str]], name: str) -> None:
    """Every field is declared, and of its type; every declared one is there."""
    fields = declared(name)
    assert set(found) - set(fields) == set()
    wrong = {path: types for path, types in found.items() if not types <= types_of(fields[path])}
    assert not wrong
    assert {path for path in fields if path not in found} == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_field_comes_or_goes_unseen(
    name: str, shelf: Path, tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [each for line in lines(name, shelf, tmp_path, url) for each in printed(line, capsys)]
    if name == "kvshelf.evict/1":
        values.append(as_json(REPORT, dry_run=False))
    check(shapes(values, name), name)


def test_a_field_that_comes_goes_or_changes_is_seen() -> None:
    name = "kvshelf.identities/1"
    entry = dict.fromkeys(("folder", "model", "engine", "digest", "problem", "identity"), "x")
    good = {"document": name, "root": "/s", "namespaces": [entry]}
    check(shapes([good], name), name)
    for bad in (
        {**good, "more": 1},
        {each: value for each, value in good.items() if each != "root"},
        {**good, "root": None},
        {**good, "namespaces": []},
    ):
        with pytest.raises(AssertionError):
            check(shapes([bad], name), name)


def test_every_field_has_a_known_type() -> None:
    for name in DOCUMENTS:
        paths = [each.path for each in fields_of(name)]
        assert len(set(paths)) == len(paths)
        for each in fields_of(name):
            kind = re.sub(r"^(list|map) of | or null$", "", each.type)
            assert kind in {"text", "number", "boolean", "object", "any", *OBJECTS}, each


def test_every_document_that_is_printed_is_on_the_page() -> None:
    sources = (Path(kvshelf.__file__).parent / "cli").glob("*.py")
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert set(re.findall(r'"(kvshelf\.[a-z]+/[0-9]+)"', text)) == set(DOCUMENTS)
