"""Single calls that fail: a finding, nothing removed that should stay, and the rest goes on."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from kvshelf.disk import this_process
from kvshelf.disk.this_process import this_owner
from kvshelf.upkeep.scrub.findings import Action, Kind
from kvshelf.upkeep.scrub.verify import FileVerifier
from tests.upkeep.scrub.shelves import chunks, everything, found, scrubbed
from tests.upkeep.scrub.test_orphans import OLD, YOUNG, dead, later, put
from tests.upkeep.scrub.test_unused import DAYS, FOLDER, REMOVED, old

__all__ = ["dead", "old"]  # fixtures


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, name: str, number: int) -> None:
    """``os.CALL`` fails for a path that ends so."""
    real = getattr(os, call)

    def refused(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, refused)


@pytest.mark.parametrize("call", ["stat", "unlink"])
def test_a_temp_file_that_storage_refuses_is_a_fault(
    shelf: Path, dead: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = put(shelf, dead)
    with monkeypatch.context() as patch:
        refuse(patch, call, path.rpartition("/")[2], errno.EIO)
        assert found(shelf) == [(Kind.FAULT, path, Action.KEPT)]
    assert (shelf / path).exists()
    assert found(shelf) == [(Kind.ORPHAN, path, Action.REMOVED)]


@pytest.mark.parametrize("error", [PermissionError, None, OverflowError])
def test_a_writer_that_proc_hides_is_judged_by_age(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    """As with hidepid, for processes of other users."""

    def kill(pid: int, signal: int) -> None:
        assert signal == 0
        if error is not None:
            raise error

    path = put(shelf, dataclasses.replace(this_owner(), pid=os.getpid()))
    monkeypatch.setattr(this_process, "start_ticks_of", lambda pid: None)
    monkeypatch.setattr(os, "kill", kill)
    later(monkeypatch, YOUNG)
    assert found(shelf) == [] and (shelf / path).exists()
    later(monkeypatch, OLD)
    assert found(shelf) == [(Kind.ORPHAN, path, Action.REMOVED)]


@pytest.mark.parametrize(
    ("call", "name"), [("rename", FOLDER), ("stat", ".kv"), ("open", "namespace.json")]
)
def test_an_unused_namespace_that_storage_refuses_stays_whole(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    before = everything(old)
    with monkeypatch.context() as patch:
        refuse(patch, call, name, errno.EIO)
        findings = found(old, unused_days=DAYS)
        assert (Kind.FAULT, FOLDER, Action.KEPT) in findings
        assert REMOVED not in {action for _, _, action in findings}
    assert everything(old) == before
    assert found(old, unused_days=DAYS) == [(Kind.UNUSED, FOLDER, REMOVED)]


def test_a_namespace_whose_file_may_only_be_read_is_locked_all_the_same(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def read_only(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if str(path) == "namespace.json" and flags & os.O_ACCMODE == os.O_RDWR:
            raise PermissionError(errno.EACCES, "another user's")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert found(old, unused_days=DAYS) == [(Kind.UNUSED, FOLDER, REMOVED)]


def test_what_could_not_be_emptied_is_by_the_next_scrub(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, "unlink", ".kv", errno.EIO)
        kinds = [kind for kind, _, _ in found(old, unused_days=DAYS)]
        assert kinds == [Kind.UNUSED, Kind.FAULT]
    assert not (old / FOLDER).exists() and len(list(old.glob(".removed-*"))) == 1
    assert found(old, unused_days=DAYS) == [] and not list(old.glob(".removed-*"))


def test_a_good_file_that_took_a_bad_ones_name_is_kept(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that mends the chunk, between the two looks at it."""
    path = chunks(shelf)[3]
    good = path.read_bytes()
    path.write_bytes(good[:5000] + b"damaged" + good[5007:])
    look_again = FileVerifier._look_again

    def replaced(self: FileVerifier, *arguments: Any) -> Any:
        path.unlink()
        path.write_bytes(good)
        return look_again(self, *arguments)

    monkeypatch.setattr(FileVerifier, "_look_again", replaced)
    findings, run = scrubbed(shelf)
    assert findings == [] and run.totals.vanished == 1 and path.read_bytes() == good


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, Kind.UNREADABLE), (errno.EIO, Kind.FAULT)]
)
def test_a_chunk_that_cannot_be_opened_is_kept(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: Kind
) -> None:
    path = chunks(shelf)[3]
    refuse(monkeypatch, "open", path.name, number)
    assert found(shelf) == [(kind, str(path.relative_to(shelf)), Action.KEPT)]
    assert path.exists()
