"""JuiceFS, CephFS and GlusterFS, each mounted twice as on two nodes; see two_nodes.py.

KVSHELF_SHAREDFS names the folder of the scripts that start them; by default ../shared/storage.
Each is skipped with a reason where its programs are absent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faulty_mount import shared_storage


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


def scripts() -> Path:
    return shared_storage("KVSHELF_SHAREDFS")


CEPH = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "ceph-fuse")
SYSTEMS = {
    "juicefs": FileSystem("juicefs", "juicefs", ("juicefs",), {"TRASH_DAYS": "0"}),
    "juicefs-trash": FileSystem("juicefs", "juicefs", ("juicefs",), {"TRASH_DAYS": "1"}),
    "cephfs": FileSystem("cephfs", "ceph", CEPH),
    "gluster": FileSystem(
        "gluster", "gluster", ("glusterd", "glusterfs"), {"NODES": "2", "KIND": "distribute"}
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SYSTEMS)
def test_two_nodes_share(name: str, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    if reason := system.why_not():
        pytest.skip(reason)
    environment = {**os.environ, **system.settings, "SHAREDFS_DIR": str(tmp_path)}
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
            pytest.skip(f"{name} did not start: {started.stderr[-300:]}")
        mounts = [str(tmp_path / system.folder / each) for each in "ab"]
        case = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), *mounts]
        done = subprocess.run(case, capture_output=True, text=True, timeout=150, check=False)
        said = done.stdout[-3000:] + done.stderr[-2000:]
        assert done.returncode == 0 and "all well" in done.stdout, said
    finally:
        script("down")
