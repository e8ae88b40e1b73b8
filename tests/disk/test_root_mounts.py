"""Roots on mounts that say no: read-only or full ones, made in a mount namespace of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.disk.namespace import Identity
from tests.mounts import mounts_allowed

LONG = "m" * 5000  # a namespace.json of two pages
OPEN = """
import sys
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
try:
    open_namespace(open_root(sys.argv[1]), Identity({"model": "m" * 5000}))
except Exception as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""


def in_mount_namespace(script: str, root: Path) -> str:
    """Output of a shell script with mounts of its own; $1 is the root."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", script, "sh", root],
        env={**os.environ, "python": sys.executable, "code": OPEN},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    if not mounts_allowed():
        pytest.skip("needs the right to mount: root with CAP_SYS_ADMIN")
    return tmp_path


def test_a_read_only_mount_is_refused(root: Path) -> None:
    script = 'mount -t tmpfs -o ro none "$1"; "$python" -c "$code" "$1"'
    assert "Read-only file system" in in_mount_namespace(script, root)


def test_a_read_only_mount_of_a_shelf_is_refused(root: Path) -> None:
    script = """
        mount -t tmpfs none "$1"; "$python" -c "$code" "$1"
        mount -o remount,ro "$1"; "$python" -c "$code" "$1"
    """
    opened, refused = in_mount_namespace(script, root).splitlines()
    assert opened == "opened"
    assert refused.startswith("ConfigError shared_storage_path=") and "not writable" in refused


def test_a_full_disk_is_refused_and_left_clean(root: Path) -> None:
    script = """
        mount -t tmpfs -o size=16k none "$1"; mkdir "$1/lost+found"
        head -c 16384 /dev/zero > "$1/lost+found/filler" || true
        "$python" -c "$code" "$1"; ls -A "$1"
        rm "$1/lost+found/filler"; "$python" -c "$code" "$1"; ls -A "$1"
    """
    lines = in_mount_namespace(script, root).splitlines()
    assert lines[0].startswith("ConfigError") and "No space left on device" in lines[0]
    assert "room" in lines[0]
    assert lines[1:3] == ["lost+found", "opened"]
    assert sorted(lines[3:]) == ["kvshelf.json", "lost+found", Identity({"model": LONG}).folder]
