"""What file systems, desktops and scanners leave in folders is neither ours nor anybody's data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.cli.main import main
from kvshelf.disk.junk import is_junk
from kvshelf.disk.layout import TempOwner, temp_name
from kvshelf.disk.root import is_shelf, list_namespaces, open_root
from kvshelf.doctor.findings import Severity
from kvshelf.doctor.site import check_directory
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.census.census import Census
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle
from tests.upkeep.scrub.shelves import fill, found

FILES = [
    ".nfs00000000000a6c1200000001",
    ".fuse_hidden0000004500000001",
    ".__smbfile_0001",
    ".__afs1B2C",
    "._kvshelf.json",
    ".DS_Store",
    "Thumbs.db",
    "Desktop.ini",
    "aquota.user",
    ".stignore",
    ".~lock.x.odt#",
]
FOLDERS = [
    "lost+found",
    ".snapshot",
    ".snap",
    ".zfs",
    ".glusterfs",
    ".Trash-1000",
    ".Trashes",
    "@eaDir",
    ".stfolder",
    "System Volume Information",
    "$RECYCLE.BIN",
    "#recycle",
    ".Spotlight-V100",
    ".quarantine",
]
OURS = [
    "kvshelf.json",
    "namespace.json",
    "tmp",
    "r0",
    "abc",
    "evict",
    "removed",
    "tiny-0123456789ab",
    "nfs-0123456789ab",
    "recycler-0123456789ab",
    f"{'ab' * 32}-g0.kv",
    ".removed-tiny-0123456789ab-01234567",
]


def put(folder: Path) -> Iterator[Path]:
    """Junk of every kind; the files also as a scanner or macOS names them after a chunk."""
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / name / "precious").write_text("kept")
        yield folder / name
    names = [*FILES, *(f"{each.name}.vir" for each in folder.glob("*.kv"))]
    names += [f"._{each.name}" for each in folder.glob("*.kv")]
    for name in names:
        (folder / name).write_text("kept")
        yield folder / name


def everywhere(root: Path) -> list[Path]:
    """Junk in the root and in the folders of namespaces, ranks and hashes."""
    spaces = [root / entry.folder for entry in list_namespaces(root)]
    ranks = [rank for space in spaces for rank in space.glob("r*")]
    leaves = [leaf for rank in ranks for leaf in rank.iterdir()]
    folders = [root, *spaces, *(space / "tmp" for space in spaces), *ranks, *leaves]
    folders += [root / name for name in ("evict", "removed") if (root / name).is_dir()]
    return [junk for folder in folders for junk in put(folder)]


def test_names() -> None:
    assert [name for name in (*FILES, *FOLDERS) if not is_junk(name)] == []
    assert [name for name in OURS if is_junk(name)] == []
    for name in ("data.txt", "folder", ".bashrc", "snapshot", "trash", "nfs1", "photo.jpg"):
        assert not is_junk(name)


@pytest.mark.parametrize("host", ["nfs-1", "_x", "fuse_hidden", "Trash-1", "stfolder", "__smb"])
def test_temp_names_of_any_host_are_ours(tmp_path: Path, host: str) -> None:
    name = f".{temp_name(TempOwner(host, '0' * 8, 5, 7, 9), 3)}"
    assert not is_junk(name)
    (tmp_path / name).touch()
    assert is_shelf(open_root(tmp_path))


def test_a_directory_with_junk_becomes_a_shelf_and_keeps_it(tmp_path: Path) -> None:
    junk = list(put(tmp_path))
    assert all(each.severity < Severity.WARNING for each in check_directory(tmp_path))
    assert is_shelf(open_root(tmp_path))
    assert all(path.exists() for path in junk)
    (tmp_path / "second").mkdir()
    list(put(tmp_path / "second"))
    (tmp_path / "second" / "data.txt").write_text("precious")
    with pytest.raises(NotAShelfError, match=r"data\.txt"):
        open_root(tmp_path / "second")


def test_an_evictor_neither_counts_nor_removes_it(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(20):
        shelf.add(1000 + i)
    (tmp_path / "evict").mkdir()
    junk = everywhere(tmp_path)
    report = settle(Evictor(tmp_path, Limits(shelf_bytes=10 * CHUNK_BYTES)))
    assert (report.foreign, report.foreign_examples, report.faults) == (0, (), {})
    assert report.removed.files == 11 and len(shelf.gone()) == 11
    assert all(path.exists() for path in junk)
    (tmp_path / shelf.folders[0] / "r0" / "data.txt").write_text("precious")
    report = settle(Evictor(tmp_path, Limits(shelf_bytes=10 * CHUNK_BYTES)))
    assert (report.foreign, report.foreign_examples) == (1, (f"{shelf.folders[0]}/r0/data.txt",))


def test_a_scrub_says_nothing_of_it(tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    fill(root)
    junk = everywhere(root)
    assert found(root) == []
    assert all(path.exists() for path in junk)


def test_it_is_no_chunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(5):
        shelf.add(1000 + i)
    everywhere(tmp_path)
    census = Census(tmp_path)
    census.refine(60)
    assert sum(rank.chunks.value for rank in census.ranks) == 5
    assert main(["ls", str(tmp_path), "--exact", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["total"]["files"]["value"] == 5


def test_the_native_core_has_the_same_list(tmp_path: Path) -> None:
    """Every name, as a file in a folder of chunks, in any case."""
    from kvshelf.disk.junk import JUNK_NAMES, JUNK_PREFIXES, JUNK_SUFFIXES

    shelf = ShelfMaker(tmp_path)
    leaf = shelf.add(1000).path.parent
    names = [*JUNK_NAMES, *(f"{text}x" for text in JUNK_PREFIXES)]
    names += [f"x{text}" for text in JUNK_SUFFIXES]
    for name in {*names, *(name.upper() for name in names)}:
        (leaf / name).touch()
        assert is_junk(name)
    assert settle(Evictor(tmp_path, Limits())).foreign == 0
