"""Hostile directories: anything, at any place of the layout, under every operation.

Each operation ends with a result or one clear error; nothing hangs (a pipe, a link to itself);
nothing outside the root is read, written, touched or removed, whatever a link says; a thing that
is not ours stays where it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvshelf import Chunk
from kvshelf.cli.main import main
from kvshelf.disk.root import is_shelf, list_namespaces, open_namespace, open_root
from kvshelf.engine import FileStatus, Phase
from kvshelf.errors import ConfigError, NotAShelfError

from .hostile import IDENTITY, KEY, OTHER_KEY, THINGS, Site, remove

pytestmark = pytest.mark.timeout(60)

PLACES = ["marker", "namespace", "namespace.json", "tmp", "rank", "hhh", "chunk"]
# What stands at a place as it should: then nothing is hostile.
HARMLESS = {("namespace", "folder"), ("tmp", "folder"), ("tmp", "full folder")}
HARMLESS |= {("rank", "folder"), ("rank", "full folder"), ("hhh", "folder")}
HARMLESS |= {("hhh", "full folder"), ("namespace.json", "hard link"), ("marker", "hard link")}
OK, NOT_FOUND, CORRUPT = FileStatus.OK, FileStatus.NOT_FOUND, FileStatus.CORRUPT


def kind_of(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return stat.S_IFMT(found.st_mode), found.st_ino


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def put(site: Site, place: str, thing: str) -> Path:
    if thing == "device" and os.geteuid() != 0:
        pytest.skip("devices are made by root")
    path = site.places[place]
    remove(path)
    THINGS[thing](site, path)
    return path


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("place", PLACES)
def test_opening_says_what_is_wrong(
    site: Site, place: str, thing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(site, place, thing)
    before = kind_of(path)
    is_shelf(site.root)
    errors = []
    for call in (lambda: open_root(site.root), lambda: open_namespace(site.root, IDENTITY)):
        try:
            call()
        except (ConfigError, NotAShelfError) as error:
            errors.append(str(error))
    status = main(["ls", "--identities", str(site.root)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err and status in (0, 1, 10)
    if place == "marker" and (place, thing) not in HARMLESS:
        assert len(errors) == 1 and status == 10 and "kvshelf.json" in errors[0] + shown.err
        assert not is_shelf(site.root)
    elif place in ("namespace", "namespace.json", "tmp") and (place, thing) not in HARMLESS:
        fine = place == "namespace" and thing == "full folder"  # made whole again
        assert len(errors) == (0 if fine else 1), errors
    else:
        assert errors == [] and status == 0
    if place == "namespace.json" and (place, thing) not in HARMLESS:
        assert status == 1 and "finding" in shown.out
    assert kind_of(path) == before
    assert site.outside_is_untouched()


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("place", PLACES)
def test_an_engine_that_runs_serves_nothing_of_it(site: Site, place: str, thing: str) -> None:
    wanted = site.blocks[:3].copy()
    with site.shelf() as shelf:
        path = put(site, place, thing)
        before = kind_of(path)
        (found,) = shelf.lookup([KEY])
        shelf.touch([KEY, OTHER_KEY])
        shelf.submit_probe(1, [KEY], 1 << 20)
        assert shelf.wait([1], Phase.FINISHED, 10) and shelf.drain(10)
        shelf.poll()
        (loaded,) = shelf.load([Chunk(KEY, range(3, 6))])
        served = place in ("marker", "namespace.json", "tmp")  # the chunk itself is as it was
        assert (loaded is OK) == served and (found is OK or place == "chunk") == (
            served or place == "chunk"
        )
        if served:
            assert (site.blocks[3:6] == wanted).all()
        site.blocks[:3] = wanted
        (stored,) = shelf.store([Chunk(OTHER_KEY, range(3))])
        shelf.store([Chunk(KEY, range(3))])
        hit = shelf.lookup([OTHER_KEY]) == [OK]
        assert hit == (stored is OK)
        if hit:
            assert shelf.load([Chunk(OTHER_KEY, range(3, 6))]) == [OK]
            assert (site.blocks[3:6] == wanted).all()
    assert site.outside_is_untouched()
    bad_file = place == "chunk" and thing in ("empty file", "garbage", "hard link")
    assert bad_file or kind_of(path) == before


def busily(change: list[object], stop: threading.Event) -> threading.Thread:
    def run() -> None:
        while not stop.is_set():
            for call in change:
                with contextlib.suppress(OSError):
                    call()  # type: ignore[operator]

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("how", ["shrinks", "grows", "is replaced", "is a link now and then"])
def test_a_file_that_changes_while_it_is_read(site: Site, how: str) -> None:
    """Loads are right or fail, and end; what is outside stays."""
    path = site.places["chunk"]
    good = path.read_bytes()
    other = path.with_name("other")

    def write(data: bytes) -> None:
        other.write_bytes(data)
        other.replace(path)

    def link() -> None:
        other.symlink_to(site.outside / path.name)
        other.replace(path)

    changes: dict[str, list[object]] = {
        "shrinks": [lambda: os.truncate(path, 6000), lambda: path.write_bytes(good)],
        "grows": [lambda: os.truncate(path, 1 << 20), lambda: os.truncate(path, len(good))],
        "is replaced": [lambda: write(good[:-1] + b"x"), lambda: write(bytes(len(good)))],
        "is a link now and then": [link, lambda: write(good)],
    }
    wanted = site.blocks[:3].copy()
    with site.shelf() as shelf:
        stop = threading.Event()
        thread = busily([*changes[how], lambda: write(good)], stop)
        seen = set()
        end = time.monotonic() + 0.7
        try:
            while time.monotonic() < end:
                site.blocks[3:6] = 0
                (status,) = shelf.load([Chunk(KEY, range(3, 6))])
                seen.add(status)
                assert status is not OK or (site.blocks[3:6] == wanted).all()
        finally:
            stop.set()
            thread.join()
    assert OK in seen
    assert site.outside_is_untouched()


def test_names_that_no_kvshelf_makes(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"\xff\xfe", b"a\nb\x1b[31m", b"n" * 255, b"..x", b"-rf", "\u202e".encode()]
    for name in names:
        folder = site.root / os.fsdecode(name)
        folder.mkdir()
        (folder / "namespace.json").write_bytes(b"\xff")
    entries = list_namespaces(open_root(site.root))
    assert len(entries) == len(names) + 1
    assert main(["ls", "--identities", str(site.root)]) == 1
    assert all(char.isprintable() or char == "\n" for char in capsys.readouterr().out)
    assert main(["ls", "--identities", str(site.root), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["namespaces"]) == len(entries)


@pytest.mark.parametrize(
    "entries",
    [2_000, pytest.param(1_000_000, marks=[pytest.mark.stress, pytest.mark.timeout(900)])],
)
def test_folders_with_many_entries(site: Site, entries: int) -> None:
    """As many as a million foreign ones (opt-in), in each folder by turns."""
    folders = [site.root, *(site.places[name] for name in ("namespace", "tmp", "hhh"))]
    for i in range(entries):
        os.close(os.open(folders[i % 4] / f"foreign-{i}", os.O_CREAT | os.O_WRONLY))
    assert [entry.problem for entry in list_namespaces(open_root(site.root))] == [""]
    with site.shelf() as shelf:
        assert shelf.lookup([KEY]) == [OK]
        assert shelf.load([Chunk(KEY, range(3, 6))]) == [OK]
        assert shelf.store([Chunk(OTHER_KEY, range(3))]) == [OK]
    assert sum(1 for folder in folders for _ in os.scandir(folder)) >= entries


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
TEXTS = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())
TEXTS |= st.dictionaries(st.sampled_from(["kvshelf", "digest", "identity"]), JSON).map(
    lambda value: json.dumps(value).encode()
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
def test_any_bytes_as_marker_or_namespace(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    root = open_root(tmp_path_factory.mktemp("any") / "root")
    folder = open_namespace(root, IDENTITY)
    (folder / "namespace.json").write_bytes(text)
    with contextlib.suppress(NotAShelfError):
        open_namespace(root, IDENTITY)
    (entry,) = list_namespaces(root)
    assert entry.problem or entry.identity is not None
    (root / "kvshelf.json").write_bytes(text)
    with contextlib.suppress(NotAShelfError):
        open_root(root)
    assert (root / "kvshelf.json").read_bytes() == text
    assert (folder / "namespace.json").read_bytes() == text
