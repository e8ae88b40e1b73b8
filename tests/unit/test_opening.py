"""Opening roots within a time. Mounts that really hang: tests/faults/test_opening.py."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvshelf import opening
from kvshelf.disk.namespace import Identity
from kvshelf.errors import ConfigError, NotAShelfError
from kvshelf.opening import Opened, open_all

IDENTITY = Identity({"model": "tiny"})
MODES = {"dir_mode": 0o2770, "file_mode": 0o640}


def open_them(*roots: Path, timeout_seconds: float = 20.0) -> Opened:
    return open_all(roots, IDENTITY, modes=MODES, timeout_seconds=timeout_seconds)


class Gate:
    """A call that waits until it is let go; then it does what it did before."""

    def __init__(self, call: Any, path: Path) -> None:
        self._call, self._path = call, path
        self.is_reached, self.is_open = threading.Event(), threading.Event()
        self.done: list[Any] = []

    def __call__(self, path: Path, *args: Any, **how: Any) -> Any:
        if Path(path) == self._path:
            self.is_reached.set()
            self.is_open.wait(60)
        self.done.append(self._call(path, *args, **how))
        return self.done[-1]


@pytest.fixture
def gate(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The second of two roots hangs in this call of opening.py."""
    made = Gate(getattr(opening, name), tmp_path / "b")
    monkeypatch.setattr(opening, name, made)
    yield made
    made.is_open.set()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def opening_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kvshelf-call"]


def join_opening_threads() -> None:
    for thread in opening_threads():
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("name", ["open_root", "open_namespace"])
def test_a_root_that_hangs_is_named_and_left(tmp_path: Path, gate: Gate) -> None:
    before = open_descriptors()
    with pytest.raises(ConfigError, match="did not answer") as found:
        open_them(tmp_path / "a", tmp_path / "b", timeout_seconds=0.2)
    assert found.value.value == str(tmp_path / "b")
    assert "open_timeout_seconds (0.2)" in str(found.value)
    assert gate.is_reached.is_set()
    # When it answers after all, nothing is kept open by it.
    gate.is_open.set()
    join_opening_threads()
    assert gate.done and open_descriptors() == before


@pytest.mark.parametrize("name", ["use_namespace"])
@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed"])
def test_a_lock_that_is_long_in_coming_is_not_waited_for(
    tmp_path: Path, gate: Gate, is_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS 4 for a minute after its server was started: the shelf opens, the lock comes."""
    monkeypatch.setattr(opening, "_LOCK_SECONDS", 0.2)
    before = open_descriptors()
    opened = open_them(tmp_path / "a", tmp_path / "b")
    assert len(opened.uses) == 1
    if is_closed:
        opened.uses.close()
    gate.is_open.set()
    join_opening_threads()
    assert len(opened.uses) == (0 if is_closed else 2)
    opened.uses.close()
    assert len(gate.done) == 2 and open_descriptors() == before


def test_what_was_opened_before_an_error_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    use = opening.use_namespace

    def fail_later(*args: Any, **how: Any) -> int | None:
        if used:
            raise NotAShelfError("no")
        used.extend([use(*args, **how) or -1])
        return used[0]

    monkeypatch.setattr(opening, "use_namespace", fail_later)
    with pytest.raises(NotAShelfError):
        open_them(tmp_path / "a", tmp_path / "b")
    with pytest.raises(OSError):
        os.fstat(used[0])


def test_roots_that_answer_are_held(tmp_path: Path) -> None:
    before = open_descriptors()
    opened = open_them(tmp_path / "a", tmp_path / "b")
    assert opened.roots == [tmp_path / "a", tmp_path / "b"]
    assert len(opened.uses) == open_descriptors() - before == 2
    opened.uses.close()
    assert open_descriptors() == before and not opening_threads()


def test_a_mount_that_is_gone_keeps_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close(2) gives its error and closes all the same."""
    before = open_descriptors()
    opened = open_them(tmp_path / "a", tmp_path / "b")
    close = os.close

    def fail(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.ENOTCONN, "no server")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        opened.uses.close()
    assert open_descriptors() == before


def test_a_namespace_that_is_gone_is_made_and_held_again(tmp_path: Path) -> None:
    opened = open_them(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "b" / IDENTITY.folder / "namespace.json"
    before, content = open_descriptors(), file.read_text()
    made = file.stat().st_ino
    opened.uses.renew(tmp_path / "b")
    assert file.stat().st_ino == made  # it was there
    shutil.rmtree(file.parent)
    opened.uses.renew(tmp_path / "b")
    assert file.read_text() == content
    assert len(opened.uses) == 2 and open_descriptors() == before
    with file.open("r+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "b").mkdir()  # a mount point with nothing mounted
    opened.uses.renew(tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())
    opened.uses.close()


def test_one_directory_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="each only once"):
        open_them(tmp_path / "a", tmp_path / "link")
