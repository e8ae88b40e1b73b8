"""What is not a chunk of a namespace of this shelf is never removed, and is reported."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshelf.disk.layout import ROOT_FOLDERS, parse_chunk_path
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Amount, Limits
from kvshelf.upkeep.evict.native import Sweep, _native
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker, settle

NOTHING = Limits(shelf_bytes=1, low_percent=1)


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def age(path: Path) -> None:
    """Older than any chunk, so that it would go first."""
    os.utime(path, (1, 1), follow_symlinks=False)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path / "shelf")
    outside = ShelfMaker(tmp_path / "outside")
    for i in range(20):
        shelf.add(1000 + i)
        outside.add(9000 + i)
    mine, theirs = shelf.root / shelf.folders[0], outside.root / outside.folders[0]
    target = outside.chunks[0].path
    # A link for each kind of thing: file, leaf folder, rank, namespace.
    links = [
        mine / "r0" / "abc" / f"{'abc' + 'd' * 61}-g0.kv",
        mine / "r0" / "fff",
        mine / "r5",
        shelf.root / "linked-0123456789ab",
    ]
    links[0].parent.mkdir(exist_ok=True)
    leaf = theirs / "r0" / "fff"
    leaf.mkdir(exist_ok=True)
    (leaf / f"{'fff' + 'd' * 61}-g0.kv").write_bytes(b"x" * CHUNK_BYTES)
    for link, end in zip(links, (target, leaf, theirs / "r0", theirs), strict=True):
        link.symlink_to(end)
        age(link)
    before = everything_under(outside.root)
    report = settle(Evictor(shelf.root, NOTHING))
    assert len(shelf.gone()) == 20
    assert everything_under(outside.root) == before and all(link.is_symlink() for link in links)
    assert report.foreign >= 4
    shown = " ".join(report.foreign_examples)
    assert all(link.name in shown for link in links)


def test_foreign_things_are_kept_and_counted(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    for i in range(50):
        shelf.add(1000 + i)
    space = tmp_path / shelf.folders[0]
    leaf = space / "r0" / "abc"
    leaf.mkdir(exist_ok=True)
    name = "abc" + "d" * 61
    files = [
        leaf / "notes.txt",
        leaf / f"{name}-g0.bin",
        leaf / f"{name.upper()}-g0.kv",
        leaf / f"{name}-g00.kv",
        leaf / f"abd{name[3:]}-g0.kv",  # of another folder
        leaf / f"{name}-g{2**32}.kv",
        space / "r0" / "abcd",
        space / "README",
        space / "r00",
        tmp_path / "data.kv",
    ]
    for path in files:
        path.write_bytes(b"precious")
    os.mkfifo(leaf / f"{name}-g1.kv")
    os.mknod(leaf / f"{name}-g3.kv", stat.S_IFSOCK | 0o600)
    (leaf / f"{name}-g2.kv").mkdir()
    (leaf / f"{name}-g2.kv" / "inner").write_bytes(b"precious")
    kept = [*files, *(leaf / f"{name}-g{i}.kv" for i in (1, 2, 3))]
    for path in kept:
        age(path)
    report = settle(Evictor(tmp_path, NOTHING))
    assert len(shelf.gone()) == 50
    assert all(os.path.lexists(path) for path in kept) and (leaf / f"{name}-g2.kv/inner").exists()
    assert report.foreign == len(kept)
    assert 0 < len(report.foreign_examples) <= 20


def test_a_folder_without_a_sound_namespace_json_is_kept(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path, "one", "two", "three", "four")
    for i in range(40):
        shelf.add(1000 + i, name_space=i % 4)
    without, damaged, linked, _ = (tmp_path / folder for folder in shelf.folders)
    (without / "namespace.json").unlink()
    (damaged / "namespace.json").write_text("{}")
    (linked / "namespace.json").rename(tmp_path / "elsewhere.json")
    (linked / "namespace.json").symlink_to(tmp_path / "elsewhere.json")
    renamed = tmp_path / "copy-0123456789ab"
    renamed.mkdir()
    for entry in (tmp_path / shelf.folders[3]).iterdir():
        if entry.name == "namespace.json":
            (renamed / entry.name).write_bytes(entry.read_bytes())
    (renamed / "r0" / "abc").mkdir(parents=True)
    copy = renamed / "r0" / "abc" / f"{'abc' + 'd' * 61}-g0.kv"
    copy.write_bytes(b"x" * CHUNK_BYTES)
    age(copy)
    report = settle(Evictor(tmp_path, NOTHING))
    assert {path.parents[2].name for path in shelf.gone()} == {shelf.folders[3]}
    assert len(shelf.gone()) == 10 and copy.exists()
    assert {renamed.name, *shelf.folders[:3]} <= set(report.foreign_examples)


def test_temp_files_are_no_chunks(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    shelf.add(1000)
    temp = tmp_path / shelf.folders[0] / "tmp" / "host-00000000-1-1-1-1.tmp"
    temp.write_bytes(b"being written")
    age(temp)
    report = settle(Evictor(tmp_path, NOTHING))
    assert temp.exists() and shelf.gone() and report.foreign == 0


def test_another_file_system_is_not_entered(tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path)
    shelf.add(1000)
    inner = tmp_path / shelf.folders[0] / "r1"
    inner.mkdir()
    mounted = os.system(f"mount -t tmpfs none {inner} 2>/dev/null") == 0
    if not mounted:
        pytest.skip("mounting needs root")
    try:
        (inner / "abc").mkdir()
        file = inner / "abc" / f"{'abc' + 'd' * 61}-g0.kv"
        file.write_bytes(b"x" * CHUNK_BYTES)
        age(file)
        report = settle(Evictor(tmp_path, NOTHING))
        assert file.exists() and shelf.gone()
        assert report.foreign_examples == (f"{shelf.folders[0]}/r1",)
    finally:
        assert os.system(f"umount {inner}") == 0


def test_only_what_may_be_removed_is(tmp_path: Path) -> None:
    """Folders that we may not write to: counted by cause, and the rest goes on."""
    shelf = ShelfMaker(tmp_path)
    for i in range(30):
        shelf.add(1000 + i)
    locked = shelf.chunks[0].path.parent
    if os.system(f"chattr +i {locked} 2>/dev/null") != 0:
        pytest.skip("needs chattr on this file system, as root")
    try:
        report = Evictor(tmp_path, NOTHING).step(seconds_max=5)
        assert report.faults.keys() == {1}  # EPERM
        stay = {chunk.path for chunk in shelf.chunks if chunk.path.parent == locked}
        assert shelf.gone() == shelf.oldest(30) - stay
    finally:
        assert os.system(f"chattr -i {locked}") == 0


names = st.from_regex(
    r"[0-9a-fA-Fx]{0,6}([0-9a-f]{2}){0,12}(-g|-|g)?[0-9]{0,11}(\.kv|\.kw|kv)?(\n|\.kv)?",
    fullmatch=True,
)


@given(leaf=st.from_regex(r"[0-9a-f]{3}", fullmatch=True), name=names, prefix=st.booleans())
def test_names_are_judged_as_the_layout_judges_them(leaf: str, name: str, prefix: bool) -> None:
    name = leaf + name if prefix else name
    expected = parse_chunk_path(f"tiny-0123456789ab/r0/{leaf}/{name}") is not None
    assert _native.is_chunk_name(leaf, name) == expected


@pytest.mark.parametrize("digits", [14, 16, 17, 64, 248, 250])
@pytest.mark.parametrize("group", ["0", "00", "7", "4294967295", "4294967296", "", "-1", "٣"])
def test_names_at_the_edges(digits: int, group: str) -> None:
    name = f"{'abc'.ljust(digits, '1')}-g{group}.kv"
    expected = parse_chunk_path(f"tiny-0123456789ab/r0/abc/{name}") is not None
    assert _native.is_chunk_name("abc", name) == expected


@pytest.mark.parametrize("name", ["r0", "r10", "r01", "r", "r-1", "r1234567890", "R0", "tmp", "r٣"])
def test_ranks_are_judged_as_the_layout_judges_them(name: str) -> None:
    path = f"tiny-0123456789ab/{name}/abc/{'abc' + 'd' * 61}-g0.kv"
    assert (_native.rank_of(name) >= 0) == (parse_chunk_path(path) is not None)


def test_a_wrong_cut_is_refused_by_its_shape(tmp_path: Path) -> None:
    sweep = Sweep(ShelfMaker(tmp_path).root)
    with pytest.raises(TypeError):
        sweep.begin_removal(np.zeros((1, 3, 2), dtype=np.int64))
    assert sweep.remove(Amount(1, 1), time.time()).finished  # nothing was begun


@pytest.mark.parametrize("folder", sorted(ROOT_FOLDERS))
def test_our_own_folders_beside_namespaces_are_not_foreign(tmp_path: Path, folder: str) -> None:
    ShelfMaker(tmp_path).add(10)
    (tmp_path / folder).mkdir()
    assert settle(Evictor(tmp_path, Limits(shelf_bytes=1 << 40))).foreign == 0
    (tmp_path / "somebody").mkdir()
    assert settle(Evictor(tmp_path, Limits(shelf_bytes=1 << 40))).foreign == 1
