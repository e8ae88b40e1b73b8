"""File systems that are shared by nodes, which scripts mount twice here.

KVSHELF_SHAREDFS names the scripts' folder; by default it is ../shared/storage.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.faulty_mount import REPOSITORY

CEPH_PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "ceph-fuse")


def shared_storage(variable: str, name: str = "") -> Path:
    """A script or folder that does not belong to the project: where the environment says, or
    ``name`` in ../shared/storage."""
    named = os.environ.get(variable)
    return Path(named) if named else REPOSITORY.parent / "shared/storage" / name


def scripts() -> Path:
    return shared_storage("KVSHELF_SHAREDFS")


@dataclass(frozen=True)
class FileSystem:
    """``script``-up.sh mounts it at ``folder``/a and /b; ``needed`` are its programs."""

    script: str
    folder: str
    needed: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)

    def why_not(self) -> str | None:
        if not (scripts() / f"{self.script}-up.sh").is_file():
            return "no scripts that start shared file systems; set KVSHELF_SHAREDFS"
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            return "mounting needs root and /dev/fuse"
        missing = [program for program in self.needed if shutil.which(program) is None]
        return f"not installed: {', '.join(missing)}" if missing else None


SYSTEMS = {
    "juicefs": FileSystem("juicefs", "juicefs", ("juicefs",), {"TRASH_DAYS": "0"}),
    "juicefs-trash": FileSystem("juicefs", "juicefs", ("juicefs",), {"TRASH_DAYS": "1"}),
    "cephfs": FileSystem("cephfs", "ceph", CEPH_PROGRAMS),
    "gluster": FileSystem(
        "gluster", "gluster", ("glusterd", "glusterfs"), {"NODES": "2", "KIND": "distribute"}
    ),
}


@contextlib.contextmanager
def mounted(system: FileSystem, folder: Path) -> Iterator[list[str] | str]:
    """Its two mounts, beneath ``folder``; or why it did not start."""
    environment = {**os.environ, **system.settings, "SHAREDFS_DIR": str(folder)}
    if juicefs := shutil.which("juicefs"):
        environment["JUICEFS"] = juicefs

    def script(step: str) -> subprocess.CompletedProcess[str]:
        command = [str(scripts() / f"{system.script}-{step}.sh")]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    started = script("up")
    try:
        if started.returncode:
            yield f"it did not start: {started.stderr[-300:]}"
        else:
            yield [str(folder / system.folder / each) for each in "ab"]
    finally:
        script("down")
