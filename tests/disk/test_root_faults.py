"""File systems and sandboxes that refuse what a root is made with."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from kvshelf.disk import root as module
from kvshelf.disk.layout import owner_is_dead
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import is_shelf, open_root, use_namespace
from kvshelf.disk.this_process import start_ticks_of, this_owner
from kvshelf.errors import ConfigError

IDENTITY = Identity({"model": "org/model", "dtype": "bfloat16"})


def refuse(number: int) -> Any:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EWOULDBLOCK])
def test_a_namespace_that_cannot_be_locked_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """No locks there, or one that a scrub holds for ever: an engine starts all the same."""
    monkeypatch.setattr(module, "_USE_SECONDS", 0.001)
    root = open_root(tmp_path / "shelf")
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse(number))
        assert use_namespace(root, IDENTITY) is None
    assert descriptors() == before
    lock = use_namespace(root, IDENTITY)
    assert lock is not None
    os.close(lock)


def test_a_sandbox_that_hides_who_we_are_makes_nobody_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process there says the same of itself."""
    hidden = ("boot_id", "/proc/self/ns/pid")
    read, stat = Path.read_text, Path.stat

    def may_read(self: Path, *arguments: Any, **options: Any) -> str:
        if str(self).endswith(hidden):
            raise PermissionError(errno.EACCES, "hidden")
        return read(self, *arguments, **options)

    def may_stat(self: Path, *arguments: Any, **options: Any) -> os.stat_result:
        if str(self).endswith(hidden):
            raise PermissionError(errno.EACCES, "hidden")
        return stat(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", may_read)
    monkeypatch.setattr(Path, "stat", may_stat)
    owner = this_owner()
    assert (owner.boot, owner.pids) == ("0" * 8, 0)
    assert owner_is_dead(owner, here=owner, start_ticks_of=lambda pid: None) is not True
    assert start_ticks_of(os.getpid()) == owner.start_ticks


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("durability", ["none", "data", "full"])
def test_folders_are_synced_for_full_durability_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, number: int
) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            refuse(number)()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    before = descriptors()
    if durability == "full":
        with pytest.raises(ConfigError, match=os.strerror(number)) as caught:
            open_root(tmp_path / "shelf", durability=durability)
        assert caught.value.setting == "durability"
    else:
        assert is_shelf(open_root(tmp_path / "shelf", durability=durability))
    assert descriptors() == before


def test_a_marker_that_storage_refuses_leaves_no_temp_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shelf"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse(errno.EIO))
        with pytest.raises(ConfigError, match=os.strerror(errno.EIO)):
            open_root(root)
    assert list(root.iterdir()) == []
    assert is_shelf(open_root(root))
