"""Each kind of damage is found; only what no reader would take is removed."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from kvshelf.disk.tree import unlink_if_same
from kvshelf.upkeep.scrub.findings import Action, Finding, Kind
from tests.harness.codec import decode, seal
from tests.harness.file_engine import HEADER_OFFSETS, flip
from tests.upkeep.scrub.shelves import IDENTITY, OTHER, chunks, everything, fill, found, scrubbed

KEPT, REMOVED, WOULD = Action.KEPT, Action.REMOVED, Action.WOULD_REMOVE
PAYLOAD_OFFSETS = [4096, 12_287, 12_288, 13_347]
PADDING_OFFSETS = [13_348, 16_383]


def check(root: Path, path: Path, kind: Kind, action: Action, detail: str = "") -> None:
    """One finding; what is removed is gone, everything else is as it was."""
    name = str(path.relative_to(root))
    before = everything(root)
    assert found(root, dry_run=True) == [(kind, name, KEPT if action is KEPT else WOULD)]
    assert everything(root) == before
    [finding], scrubber = scrubbed(root)
    assert (finding.kind, finding.path, finding.action) == (kind, name, action)
    assert detail in finding.detail and scrubber.totals.finished
    assert scrubber.totals.files == len([p for p in before if p.endswith(".kv")])
    if action is REMOVED:
        del before[name]
    assert everything(root) == before
    assert found(root) == ([] if action is REMOVED else [(kind, name, KEPT)])


def test_a_sound_shelf_has_no_findings(shelf: Path) -> None:
    fill(shelf, range(100, 104), rank=3)
    fill(shelf, range(4), identity=OTHER)
    before = everything(shelf)
    findings, scrubber = scrubbed(shelf)
    assert findings == [] and everything(shelf) == before
    assert (scrubber.totals.files, scrubber.totals.bytes) == (16, 16 * 16_384)
    assert scrubber.totals.finished and scrubber.totals.vanished == 0


@pytest.mark.parametrize("offset", HEADER_OFFSETS)
def test_a_flipped_bit_of_the_header(shelf: Path, offset: int) -> None:
    flip(chunks(shelf)[3], offset)
    check(shelf, chunks(shelf)[3], Kind.CORRUPT, REMOVED, "header is damaged")


@pytest.mark.parametrize("offset", PAYLOAD_OFFSETS)
def test_a_flipped_bit_of_the_payload(shelf: Path, offset: int) -> None:
    flip(chunks(shelf)[3], offset)
    piece = f"piece {(offset - 4096) // 8192} of 2 is damaged"
    check(shelf, chunks(shelf)[3], Kind.CORRUPT, REMOVED, piece)


@pytest.mark.parametrize("offset", PADDING_OFFSETS)
def test_a_flipped_bit_of_the_padding_is_reported_and_kept(shelf: Path, offset: int) -> None:
    assert chunks(shelf)[3].stat().st_size == PADDING_OFFSETS[-1] + 1
    flip(chunks(shelf)[3], offset)
    check(shelf, chunks(shelf)[3], Kind.PADDING, KEPT)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 8192, 12_288, 16_383, 16_385, 20_480])
def test_a_wrong_size(shelf: Path, size: int) -> None:
    os.truncate(chunks(shelf)[3], size)
    check(shelf, chunks(shelf)[3], Kind.CORRUPT, REMOVED)


def test_swapped_files(shelf: Path) -> None:
    one, two = chunks(shelf)[:2]
    aside = shelf / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    names = [str(path.relative_to(shelf)) for path in (one, two)]
    assert found(shelf) == [(Kind.MISPLACED, name, REMOVED) for name in names]
    assert len(chunks(shelf)) == 6


def test_a_chunk_of_another_rank(shelf: Path) -> None:
    [other] = fill(shelf, [100], rank=3)
    target = shelf / IDENTITY.folder / "r0" / other.parent.name / other.name
    target.parent.mkdir(exist_ok=True)
    other.rename(target)
    check(shelf, target, Kind.MISPLACED, REMOVED, "rank 3")


def test_a_chunk_of_another_namespace(shelf: Path) -> None:
    [other] = fill(shelf, [100], identity=OTHER)
    target = shelf / IDENTITY.folder / "r0" / other.parent.name / other.name
    target.parent.mkdir(exist_ok=True)
    other.rename(target)
    check(shelf, target, Kind.MISPLACED, REMOVED, "namespace")


def test_a_chunk_whose_namespace_differs_late_in_the_digest(shelf: Path) -> None:
    """The folder's name holds its first 12 digits only; namespace.json has all."""
    path = chunks(shelf)[3]
    page = bytearray(path.read_bytes())
    page[95] ^= 1
    page[:4096] = seal(page[:4096])
    path.write_bytes(page)
    check(shelf, path, Kind.MISPLACED, REMOVED, "namespace")


def test_a_file_of_another_format_version_is_kept(shelf: Path) -> None:
    path = chunks(shelf)[3]
    page = bytearray(path.read_bytes())
    page[8] = 2
    page[:4096] = seal(page[:4096])
    path.write_bytes(page)
    assert decode(page).version == 2
    check(shelf, path, Kind.VERSION, KEPT, "version 2")


@pytest.mark.parametrize("content", ["", "{", '{"kvshelf": 2, "identity": {"model": "demo"}}'])
def test_a_damaged_namespace_json_is_kept_and_its_chunks_verified(
    shelf: Path, content: str
) -> None:
    path = shelf / IDENTITY.folder / "namespace.json"
    path.write_text(content)
    check(shelf, path, Kind.NAMESPACE, KEPT)
    flip(chunks(shelf)[0], 5000)
    assert [kind for kind, _, _ in found(shelf)] == [Kind.NAMESPACE, Kind.CORRUPT]


def test_a_missing_namespace_json_is_a_finding(shelf: Path) -> None:
    path = shelf / IDENTITY.folder / "namespace.json"
    path.unlink()
    name = str(path.relative_to(shelf))
    assert found(shelf) == [(Kind.NAMESPACE, name, KEPT)]


def test_in_a_renamed_folder_nothing_is_removed(shelf: Path) -> None:
    folder = "renamed-0123456789ab"
    (shelf / IDENTITY.folder).rename(shelf / folder)
    before = everything(shelf)
    assert [(kind, action) for kind, _, action in found(shelf)] == [(Kind.NAMESPACE, KEPT)]
    flip(chunks(shelf)[0], 5000)
    before = everything(shelf)
    assert [(kind, action) for kind, _, action in found(shelf)] == [
        (Kind.NAMESPACE, KEPT),
        (Kind.CORRUPT, KEPT),
    ]
    assert everything(shelf) == before


def make_foreign(path: Path, what: str, outside: Path) -> None:
    if what == "link to a chunk":
        path.symlink_to(outside)
    elif what == "dangling link":
        path.symlink_to("nowhere")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        here = os.open(path.parent, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as server:  # a short name: the path would be too long
            os.chdir(here)
            server.bind(path.name[-100:])
        os.close(here)
        (path.parent / path.name[-100:]).rename(path)
    elif what == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("making a device needs root")
    else:
        path.mkdir()


FOREIGN = ["link to a chunk", "dangling link", "fifo", "socket", "device", "folder"]


@pytest.mark.parametrize("what", FOREIGN)
def test_something_else_under_a_chunks_name_is_kept(
    shelf: Path, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, outside = chunks(shelf)[3], tmp_path / "outside.kv"
    path.rename(outside)
    flip(outside, 5000)
    make_foreign(path, what, outside)
    name = str(path.relative_to(shelf))
    before = everything(shelf)
    assert found(shelf) == [(Kind.FOREIGN, name, KEPT)]
    assert everything(shelf) == before and outside.exists()


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_foreign_entries_at_every_level_are_kept(shelf: Path, level: int, tmp_path: Path) -> None:
    folder = shelf.joinpath(*chunks(shelf)[0].relative_to(shelf).parts[: level - 1])
    names = ["notes.txt", "x" * 255, "r-1", "r01", "fff0", "-", "kvshelf.json.bak", "a\nb"]
    for name in names:
        (folder / name).write_text("mine")
    (folder / os.fsdecode(b"\xff\xfe")).write_text("mine")
    (folder / "data").mkdir()
    (folder / "data" / chunks(shelf)[0].name).write_text("mine")
    before = everything(shelf)
    findings = found(shelf)
    assert {(kind, action) for kind, _, action in findings} == {(Kind.FOREIGN, KEPT)}
    assert len(findings) == len(names) + 2 and everything(shelf) == before


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_folder_that_is_a_link_is_not_entered(shelf: Path, depth: int, tmp_path: Path) -> None:
    parts = chunks(shelf)[0].relative_to(shelf).parts[:depth]
    flip(chunks(shelf)[0], 5000)
    outside = tmp_path / "outside"
    shelf.joinpath(*parts).rename(outside)
    shelf.joinpath(*parts).symlink_to(outside)
    before = everything(outside)
    assert found(shelf) == [(Kind.FOREIGN, "/".join(parts), KEPT)]
    assert everything(outside) == before


def test_what_a_file_system_keeps_in_folders_is_no_finding(shelf: Path) -> None:
    chunks(shelf)[0].with_name(".nfs00000000000a").write_text("open elsewhere, removed")
    (shelf / "lost+found").mkdir()
    assert found(shelf) == []


def test_a_name_that_is_another_files_by_now_is_not_removed(shelf: Path) -> None:
    path = chunks(shelf)[0]
    seen = path.stat()
    with path.open("rb"):  # as the scrub does: its inode is not used again
        path.unlink()
        path.write_bytes(b"a healthy chunk, stored meanwhile")
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            assert not unlink_if_same(folder, path.name, seen)
            assert path.exists()
            assert unlink_if_same(folder, path.name, path.stat())
            assert not unlink_if_same(folder, path.name, seen)
        finally:
            os.close(folder)


def test_findings_are_json(shelf: Path) -> None:
    flip(chunks(shelf)[0], 0)
    [finding] = scrubbed(shelf)[0]
    assert isinstance(finding, Finding)
    assert finding.to_json() == {
        "kind": "corrupt",
        "path": str(Path(finding.path)),
        "detail": "the header is damaged",
        "action": "removed",
    }
