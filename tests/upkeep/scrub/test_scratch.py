"""Folders of ``kvshelf bench`` and ``doctor`` that were killed: their gigabytes do not stay."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvshelf.bench import Scratch
from kvshelf.disk import tree as folders
from kvshelf.disk.layout import MARKER, TempOwner, temp_name
from kvshelf.disk.this_process import this_owner
from kvshelf.upkeep.scrub.findings import Action, Kind
from tests.upkeep.scrub.shelves import everything, found, scrubbed
from tests.upkeep.scrub.test_orphans import OLD, YOUNG, dead, later

__all__ = ["dead"]  # a fixture


def put(root: Path, owner: TempOwner, *, marker: bool = True) -> Path:
    """A folder as ``Scratch`` makes it, with something in it."""
    path = root / f".{temp_name(owner, 7)}"
    (path / "model-0" / "r0" / "abc").mkdir(parents=True)
    (path / "model-0" / "r0" / "abc" / "chunk.kv").write_bytes(bytes(5000))
    if marker:
        (path / MARKER).write_text('{"kvshelf": 1}')
    return path


def test_a_killed_bench_leaves_nothing_for_long(shelf: Path) -> None:
    before = everything(shelf)
    command = [sys.executable, "-m", "kvshelf.cli", "bench", str(shelf), "--rounds", "1000"]
    bench = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while sum(path.is_file() for path in shelf.rglob(".*/**/*")) < 5:
            assert time.monotonic() < deadline and bench.poll() is None
            time.sleep(0.01)
        bench.send_signal(signal.SIGSTOP)
        findings, run = scrubbed(shelf)
        assert findings == [] and run.totals.writing >= 1  # it lives
    finally:
        bench.kill()
        bench.wait()
    [scratch] = [path.name for path in shelf.iterdir() if path.name.startswith(".")]
    assert found(shelf, dry_run=True) == [(Kind.ORPHAN, scratch, Action.WOULD_REMOVE)]
    assert (shelf / scratch).exists()
    assert found(shelf) == [(Kind.ORPHAN, scratch, Action.REMOVED)]
    assert everything(shelf) == before


def test_one_of_this_process_stays(shelf: Path) -> None:
    path = put(shelf, this_owner())
    assert found(shelf) == [] and path.exists()


def test_one_of_another_host_is_judged_by_age(
    shelf: Path, dead: TempOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(shelf, dataclasses.replace(dead, host="elsewhere"))
    later(monkeypatch, YOUNG)
    assert found(shelf) == [] and path.exists()
    later(monkeypatch, OLD)
    assert found(shelf) == [(Kind.ORPHAN, path.name, Action.REMOVED)]


def test_without_a_marker_it_is_somebodys_data(shelf: Path, dead: TempOwner) -> None:
    path = put(shelf, dead, marker=False)
    assert found(shelf) == [(Kind.FOREIGN, path.name, Action.KEPT)]
    (path / MARKER).write_text('{"kvshelf": 99}')
    assert found(shelf) == [(Kind.FOREIGN, path.name, Action.KEPT)]
    assert (path / "model-0" / "r0" / "abc" / "chunk.kv").exists()


def test_no_link_is_followed(shelf: Path, dead: TempOwner, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "data").write_text("precious")
    (canary / MARKER).write_text('{"kvshelf": 1}')
    link = shelf / f".{temp_name(dead, 8)}"
    link.symlink_to(canary)
    path = put(shelf, dead)
    (path / "model-0" / "link").symlink_to(canary)
    (path / "link").symlink_to(canary / "data")
    assert found(shelf) == [
        (Kind.ORPHAN, path.name, Action.REMOVED),
        (Kind.FOREIGN, link.name, Action.KEPT),
    ]
    assert (canary / "data").read_text() == "precious" and not path.exists()


def test_a_marker_that_is_a_link_does_not_count(shelf: Path, dead: TempOwner) -> None:
    path = put(shelf, dead, marker=False)
    (path / MARKER).symlink_to(shelf / MARKER)
    assert found(shelf) == [(Kind.FOREIGN, path.name, Action.KEPT)]
    assert path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_another_file_system_in_it_is_kept(shelf: Path, dead: TempOwner) -> None:
    path = put(shelf, dead)
    mounted = path / "model-0" / "mounted"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(mounted)], check=False).returncode:
        pytest.skip("no mounts here")
    try:
        (mounted / "data").write_text("precious")
        [(kind, _, action)] = found(shelf)
        assert (kind, action) == (Kind.FAULT, Action.KEPT)
        assert (mounted / "data").read_text() == "precious"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_another_file_system_at_its_name_is_kept(shelf: Path, dead: TempOwner) -> None:
    path = put(shelf, dead)
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=False).returncode:
        pytest.skip("no mounts here")
    try:
        (path / "data").write_text("precious")
        (path / MARKER).write_text('{"kvshelf": 1}')
        assert found(shelf) == [(Kind.FAULT, path.name, Action.KEPT)]
        assert (path / "data").read_text() == "precious"
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_tree_that_is_too_deep_is_kept_and_ends_no_scrub(shelf: Path, dead: TempOwner) -> None:
    path = put(shelf, dead)
    deep = path / "/".join("d" * 40)
    deep.mkdir(parents=True)
    findings, run = scrubbed(shelf)
    assert [(f.kind, f.path) for f in findings] == [(Kind.FAULT, path.name)]
    assert run.totals.finished and deep.exists()


def test_what_a_client_of_nfs_still_has_open_is_left_to_a_scrub(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removed file that is open stays as ``.nfs...`` until it is closed."""
    waits: list[float] = []
    monkeypatch.setattr(folders.time, "sleep", waits.append)
    with Scratch(shelf) as scratch:
        (scratch.path / "probe").mkdir()
        (scratch.path / "probe" / ".nfs0001").write_bytes(b"x")
    assert scratch.path.exists() and sum(waits) >= 2
    (scratch.path / "probe" / ".nfs0001").unlink()
    assert sorted(path.name for path in scratch.path.iterdir()) == [MARKER, "probe"]

    def close(_: float) -> None:
        (other.path / "probe" / ".nfs0002").unlink(missing_ok=True)

    monkeypatch.setattr(folders.time, "sleep", close)
    with Scratch(shelf) as other:
        (other.path / "probe").mkdir()
        (other.path / "probe" / ".nfs0002").write_bytes(b"x")
    assert not other.path.exists()
