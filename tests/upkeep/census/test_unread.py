"""What may not be listed is not counted, and is not said to be nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvshelf.cli.main import main
from kvshelf.disk import tree
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from kvshelf.upkeep.census import folders
from kvshelf.upkeep.census.watch import Watch
from tests.upkeep.census.test_census import put

FOLDER = Identity({"model": "m"}).folder


@pytest.fixture(params=["namespace", "rank", "hash folder"])
def refused(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A shelf of 20 chunks, of which a folder cannot be listed. Root may list everything."""
    root = open_root(tmp_path / "shelf")
    open_namespace(root, Identity({"model": "m"}))
    paths = [put(root, FOLDER, number) for number in range(20)]
    places = {
        "namespace": root / FOLDER,
        "rank": root / FOLDER / "r0",
        "hash folder": paths[0].parent,
    }
    place = places[request.param]
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if isinstance(path, int) and Path(f"/proc/self/fd/{path}").readlink() == place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(tree.os, "scandir", refuse)
    return root, place


@pytest.mark.parametrize("view", [[], ["--sizes"]])
def test_it_is_told_and_not_exact(
    refused: Any, view: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, place = refused
    assert main(["ls", *view, str(root)]) == 1
    out = capsys.readouterr().out
    assert f"too little: 1 could not be read, as {place}: Permission denied" in out
    assert "exact" not in out.splitlines()
    assert main(["ls", *view, str(root), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["exact"] is False and value["unread"] == 1
    assert value["unread_example"] == f"{place}: Permission denied"


def test_a_watch_tells_it(refused: Any) -> None:
    root, place = refused
    view = Watch(root, look_seconds=60).look()
    assert view.unread.count == 1 and str(place) in view.unread.example


def test_what_vanishes_meanwhile_is_no_fault(tmp_path: Path) -> None:
    unread = folders.Unread()
    rank = folders.RankFolder(FOLDER, 0, tmp_path / "gone")
    assert folders.chunks_in(rank, "abc", unread) == {} and unread.count == 0


@pytest.mark.parametrize("place", ["namespace", "rank", "hash folder"])
def test_a_folder_that_became_a_link_is_not_followed(tmp_path: Path, place: str) -> None:
    root = open_root(tmp_path / "shelf")
    path = put(root, FOLDER, 1)
    ranks = folders.rank_folders(root, folders.Unread())
    moved = {"namespace": root / FOLDER, "rank": path.parent.parent, "hash folder": path.parent}
    moved[place].rename(tmp_path / "elsewhere")
    moved[place].symlink_to(tmp_path / "elsewhere")
    unread = folders.Unread()
    if place == "hash folder":
        assert folders.chunks_in(ranks[0], path.parent.name, unread) == {}
    assert not any(rank.hash_folders for rank in folders.rank_folders(root, unread))
    assert unread.count == 0
