"""What cannot be removed is named, and neither hides what it is nor keeps the rest."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvshelf.upkeep.scrub import scrubber
from kvshelf.upkeep.scrub.findings import Action, Kind
from tests.upkeep.scrub.shelves import chunks, found, scrubbed
from tests.upkeep.scrub.test_orphans import dead
from tests.upkeep.scrub.test_refused import refuse
from tests.upkeep.scrub.test_scratch import put
from tests.upkeep.scrub.test_unused import DAYS, FOLDER, REMOVED, old

__all__ = ["dead", "old"]  # fixtures


def damage(path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:5000] + b"damaged" + good[5007:])


@pytest.fixture
def immutable(shelf: Path) -> Iterator[Path]:
    """A damaged chunk with the immutable flag."""
    path = chunks(shelf)[3]
    damage(path)
    if subprocess.run(["chattr", "+i", str(path)], check=False, capture_output=True).returncode:
        pytest.skip("no chattr on this file system, or not root")
    yield path
    subprocess.run(["chattr", "-i", str(path)], check=True)


def test_a_damaged_chunk_with_a_flag_is_still_damaged(shelf: Path, immutable: Path) -> None:
    findings, _ = scrubbed(shelf)
    [finding] = findings
    assert (finding.kind, finding.action) == (Kind.CORRUPT, Action.KEPT)
    assert "cannot be removed: Operation not permitted" in finding.detail


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_damaged_chunks_that_stay_do_not_stop_the_scrub(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(scrubber, "FAULTS_MAX", 2)
    for path in chunks(shelf):
        damage(path)
    refuse(monkeypatch, "unlink", ".kv", number)
    findings, run = scrubbed(shelf)
    assert [finding.kind for finding in findings] == [Kind.CORRUPT] * 8
    assert run.totals.finished


def test_of_an_unused_namespace_all_goes_that_can(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name for path in chunks(old / FOLDER)]
    real = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        if path in names[2:5]:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        findings, _ = scrubbed(old, unused_days=DAYS)
    assert [each.kind for each in findings] == [Kind.UNUSED, Kind.FAULT]
    [gone] = old.glob(".removed-*")
    assert {path.name for path in gone.rglob("*") if path.is_file()} == set(names[2:5])
    assert findings[1].path == str(next(gone.rglob(names[2])).relative_to(old))
    assert findings[1].detail == "Operation not permitted, as for 2 others"
    assert found(old, unused_days=DAYS) == [] and not list(old.glob(".removed-*"))
    assert REMOVED is Action.REMOVED


def test_of_a_scratch_folder_all_goes_that_can(
    shelf: Path, dead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(shelf, dead)
    stays = path / "model-0" / "r0" / "abc" / "locked.kv"
    stays.write_bytes(b"x")
    (path / "model-1").mkdir()
    with monkeypatch.context() as patch:
        refuse(patch, "unlink", stays.name, errno.EPERM)
        assert found(shelf) == [(Kind.FAULT, path.name, Action.KEPT)]
    left = sorted(each.name for each in path.rglob("*") if each.is_file())
    assert left == ["kvshelf.json", "locked.kv"] and not (path / "model-1").exists()
    assert found(shelf) == [(Kind.ORPHAN, path.name, Action.REMOVED)] and not path.exists()
