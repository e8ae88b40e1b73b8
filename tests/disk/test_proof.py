"""A shelf that has lost its marker is recognized; a directory that only looks like one is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvshelf.cli.main import main
from kvshelf.disk.namespace import Identity
from kvshelf.disk.proof import has_lost_marker, others_data
from kvshelf.disk.root import is_shelf, open_namespace, open_root
from kvshelf.doctor.findings import Severity
from kvshelf.doctor.site import check_directory
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict.turn import Turn
from kvshelf.upkeep.scrub.findings import Totals
from tests.upkeep.scrub.shelves import IDENTITY, chunks, fill

SPACE = IDENTITY.folder
FREE = "lease-0000000000-0000000000-0000000000000000-free"
JOURNAL = f"{SPACE}-{'a' * 16}-0.keys"


def evicted(root: Path) -> None:
    """What an evictor leaves: a lease and a journal."""
    turn = Turn(root, lease_seconds=5, on_fault=lambda part, error: pytest.fail(f"{part} {error}"))
    assert turn.is_ours()
    turn.removed(SPACE, 0, [b"k" * 36])
    turn.leave()


@pytest.fixture
def purged(tmp_path: Path) -> Path:
    """A shelf with all that there may be, without its marker."""
    root = tmp_path / "shelf"
    fill(root)
    evicted(root)
    (root / "kvshelf.json").unlink()
    return root


def without_files(root: Path) -> None:
    for path in root.rglob("*"):
        if not path.is_dir():
            path.unlink()


def keep_only(root: Path, name: str) -> None:
    for path in root.iterdir():
        if path.name != name:
            shutil.rmtree(path)


def without_identity(root: Path) -> None:
    (root / SPACE / "namespace.json").unlink()


def only_chunks(root: Path) -> None:
    keep_only(root, SPACE)
    without_identity(root)
    shutil.rmtree(root / SPACE / "tmp")


PURGES: dict[str, Callable[[Path], None]] = {
    "the marker alone": lambda root: None,
    "namespace.json too": without_identity,
    "all but the lease": lambda root: keep_only(root, "evict"),
    "all but the journal": lambda root: keep_only(root, "removed"),
    "all but the namespace": lambda root: keep_only(root, SPACE),
    "all but chunks": only_chunks,
    "all files": without_files,
    "all": lambda root: keep_only(root, ""),
}


@pytest.mark.parametrize("purge", PURGES)
def test_what_a_purge_leaves_is_a_shelf_again(purged: Path, purge: str) -> None:
    PURGES[purge](purged)
    left = {path for path in purged.rglob("*") if not path.is_dir()}
    assert others_data(purged) is None
    assert all(each.severity < Severity.WARNING for each in check_directory(purged))
    assert is_shelf(open_root(purged))
    open_namespace(purged, IDENTITY)
    assert {path for path in left if path.exists()} == left
    fill(purged)


def test_a_scrubs_place_is_a_proof(tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    fill(root)
    assert main(["scrub", str(root)]) == 0
    assert Totals().findings == {}
    (root / "kvshelf.json").unlink()
    keep_only_file(root, "kvshelf-scrub.json")
    assert is_shelf(open_root(root))


def keep_only_file(root: Path, name: str) -> None:
    for path in root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != name:
            path.unlink()


def put(path: Path, text: str | bytes = "precious") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def sound(identity: Identity = IDENTITY) -> str:
    return json.dumps(identity.to_json())


def chunk_of_another_place(root: Path, elsewhere: Path) -> None:
    """A real chunk under another key's name, rank or namespace."""
    fill(elsewhere)
    for i, chunk in enumerate(chunks(elsewhere)):
        data = chunk.read_bytes()
        name = f"{i:03x}{'f' * 61}-g0.kv"
        put(root / SPACE / "r0" / f"{i:03x}" / name, data)
        put(root / SPACE / "r1" / chunk.parent.name / chunk.name, data)
        put(root / "other-0123456789ab" / "r0" / chunk.parent.name / chunk.name, data)


LOOK_ALIKES: dict[str, Callable[[Path, Path], object]] = {
    "evict with data": lambda root, _: put(root / "evict" / "data"),
    "a lease with content": lambda root, _: put(root / "evict" / FREE, "x"),
    "a lease's name, nearly": lambda root, _: put(root / "evict" / FREE[:-1], b""),
    "a lease that is a folder": lambda root, _: (root / "evict" / FREE).mkdir(parents=True),
    "evict is a file": lambda root, _: put(root / "evict", b""),
    "removed with data": lambda root, _: put(root / "removed" / "data"),
    "a journal of others": lambda root, _: put(root / "removed" / JOURNAL, "kvshelf removed 2"),
    "doctor with data": lambda root, _: put(root / "doctor" / "report.txt"),
    "a namespace with data": lambda root, _: put(root / SPACE / "data"),
    "namespace.json of others": lambda root, _: put(root / SPACE / "namespace.json", "{}"),
    "namespace.json of another folder": lambda root, _: put(
        root / "demo-0123456789ab" / "namespace.json", sound()
    ),
    "a damaged chunk": lambda root, _: put(
        root / SPACE / "r0" / "abc" / f"abc{'0' * 61}-g0.kv", bytes(8192)
    ),
    "chunks of another place": chunk_of_another_place,
    "a cursor of others": lambda root, _: put(root / "kvshelf-scrub.json", '{"kvshelf": 1}'),
    "one of ours beside data": lambda root, _: (
        put(root / SPACE / "namespace.json", sound()),
        put(root / "data.txt"),
    ),
    "a folder of another name": lambda root, _: (root / "models").mkdir(),
    "an empty namespace with a strange folder": lambda root, _: (root / SPACE / "photos").mkdir(
        parents=True
    ),
}


@pytest.mark.parametrize("what", LOOK_ALIKES)
def test_a_look_alike_is_refused_and_untouched(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    LOOK_ALIKES[what](root, tmp_path / "elsewhere")
    before = sorted(root.rglob("*"))
    assert others_data(root) is not None and not has_lost_marker(root)
    with pytest.raises(NotAShelfError, match="other data"):
        open_root(root)
    for command in ("evict", "scrub", "ls"):
        assert main([command, str(root), *(["--once"] if command == "evict" else [])]) == 10
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("deep", ["evict", SPACE, f"{SPACE}/namespace.json", f"{SPACE}/r0"])
def test_a_link_proves_nothing(tmp_path: Path, deep: str) -> None:
    """To a real shelf's, which a look through it would find sound."""
    real = tmp_path / "real"
    fill(real)
    evicted(real)
    root = tmp_path / "root"
    (root / deep).parent.mkdir(parents=True)
    (root / deep).symlink_to(real / deep)
    with pytest.raises(NotAShelfError, match="other data"):
        open_root(root)
    assert not os.path.lexists(root / "kvshelf.json")


def test_commands_that_delete_make_the_marker_again(
    purged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["ls"],
        ["ls", "--sizes"],
        ["top", "--once"],
        ["evict", "--dry-run"],
        ["scrub", "--dry-run"],
    ):
        main([command[0], str(purged), *command[1:]])
        assert not (purged / "kvshelf.json").exists()
    assert "no kvshelf.json" not in capsys.readouterr().err.replace("evict", "")
    for deleting in (["evict", "--once"], ["scrub"]):
        (purged / "kvshelf.json").unlink(missing_ok=True)
        assert main([deleting[0], str(purged), *deleting[1:]]) == 0
        assert is_shelf(purged)
        assert "made kvshelf.json again" in capsys.readouterr().err


def test_an_empty_directory_is_no_shelf_for_a_command(tmp_path: Path) -> None:
    for command in (["ls"], ["evict", "--once"], ["scrub"]):
        assert main([command[0], str(tmp_path), *command[1:]]) == 10
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_namespaces_is_no_shelf_to_delete_in(
    purged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_only(purged, SPACE)
    before = sorted(purged.rglob("*"))
    for command in (["evict", "--once", "--shelf-limit", "1"], ["scrub"]):
        assert main([command[0], str(purged), *command[1:]]) == 10
        assert "nothing is deleted there" in capsys.readouterr().err
    assert sorted(purged.rglob("*")) == before
