"""The mount with quirks shows the quirks, and no others."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.quirk_mount import QuirkMount, quirk_mount, rename_noreplace


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[QuirkMount]:
    # For other users. Below /tmp all are this test run's.
    for folder in (tmp_path, *tmp_path.parents):
        if len(folder.parts) > 2:
            folder.chmod(0o755)
    with quirk_mount(tmp_path) as mounted:
        yield mounted


def test_without_quirks_it_is_a_file_system(mount: QuirkMount) -> None:
    file = mount.path / "folder" / "file"
    file.parent.mkdir(mode=0o2770)
    file.write_bytes(bytes(range(256)) * 1000)
    assert file.read_bytes() == (mount.source / "folder/file").read_bytes()
    os.utime(file, ns=(1_600_000_000_123_456_789, 1_600_000_001_000_000_001))
    assert file.stat().st_atime_ns == 1_600_000_000_123_456_789
    os.link(file, mount.path / "linked")
    assert rename_noreplace(mount.path / "linked", file) == errno.EEXIST
    assert rename_noreplace(mount.path / "linked", mount.path / "free") == 0
    with (mount.path / "free").open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, 1 << 20)
        os.fsync(opened.fileno())
    assert (mount.path / "free").stat().st_size == 1 << 20
    file.unlink()
    assert sorted(os.listdir(mount.path)) == ["folder", "free"]  # noqa: PTH208


def test_entries_belong_to_who_made_them(mount: QuirkMount) -> None:
    shared = mount.path / "shared"
    shared.mkdir()
    os.chown(shared, 1000, 2000)
    shared.chmod(0o2777)
    line = ["setpriv", "--reuid=1500", "--regid=1500", "--clear-groups"]
    line += ["sh", "-c", f"umask 022; mkdir {shared}/made; echo x > {shared}/file"]
    subprocess.run(line, check=True)
    for name, mode in (("made", 0o2755), ("file", 0o644)):
        found = (shared / name).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1500, 2000, mode), name


def test_each_quirk_shows(mount: QuirkMount) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x" * 5000)
    mount.set(errors={"rename_flags": "EINVAL", "link": "EPERM", "fallocate": "EOPNOTSUPP"})
    assert rename_noreplace(file, mount.path / "new") == errno.EINVAL
    with pytest.raises(PermissionError):
        os.link(file, mount.path / "new")
    # Of a name that is taken the kernel says so itself and asks nobody.
    (mount.path / "other").write_bytes(b"y")
    assert rename_noreplace(mount.path / "other", file) == errno.EEXIST
    mount.set(errors={"write_gap": "EINVAL", "unlink": {"errno": "EPERM", "path": "kept"}})
    (mount.path / "kept").write_bytes(b"z")
    (mount.path / "gone").write_bytes(b"z")
    (mount.path / "gone").unlink()
    with pytest.raises(PermissionError):
        (mount.path / "kept").unlink()
    handle = os.open(mount.path / "kept", os.O_RDWR)
    with pytest.raises(OSError, match="Invalid"):
        os.pwrite(handle, b"z", 4096)
    os.close(handle)
    mount.set(statvfs={"f_files": 12, "f_ffree": 2**64 - 1})
    assert os.statvfs(mount.path).f_ffree == -1  # as CephFS has it
    mount.set(time_step_ns=2 * 10**9)
    os.utime(file, ns=(1_600_000_001_123_456_789, 0))
    assert file.stat().st_atime_ns == 1_600_000_000_000_000_000
    mount.set(clock_offset_seconds=86_400)
    (mount.path / "tomorrow").write_bytes(b"z")
    assert (mount.path / "tomorrow").stat().st_mtime > time.time() + 80_000


def test_quota_and_volume(mount: QuirkMount) -> None:
    mount.set(quota_bytes=10_000)
    (mount.path / "one").write_bytes(b"x" * 9_000)
    with pytest.raises(OSError, match="uota"):
        (mount.path / "two").write_bytes(b"x" * 9_000)
    (mount.path / "two").unlink()
    mount.set(volume_bytes=1 << 20, volume_inodes=10, keeps_removed=True)
    before = os.statvfs(mount.path)
    assert (before.f_blocks, before.f_files, before.f_ffree) == (256, 10, 9)
    (mount.path / "one").unlink()
    after = os.statvfs(mount.path)
    assert after.f_bfree == before.f_bfree and after.f_ffree == 10
    with pytest.raises(OSError, match="No space"):
        (mount.path / "three").write_bytes(b"x" * (1 << 20))
