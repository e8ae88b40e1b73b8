"""NFS with the real kernel client and server, in a guest; see two_nodes.py for what is asked there.

KVSHELF_KNFS names the script that runs a command in such a guest; by default it is looked for in
../shared/storage. Skipped with a reason where it or what it needs is absent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faulty_mount import shared_storage

NEEDED = ("linux.uml", "exportfs", "rpc.nfsd", "mkfs.ext4", "modprobe")


def script() -> Path:
    return shared_storage("KVSHELF_KNFS", "knfs-run.sh")


def why_not() -> str | None:
    if not script().is_file():
        return "no script that starts a guest with NFS; set KVSHELF_KNFS"
    if os.geteuid() != 0:
        return "the guest needs root"
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


REASON = why_not()
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_two_nodes_share_and_a_stopped_server_hangs_nobody(version: str, tmp_path: Path) -> None:
    case = [sys.executable, str(Path(__file__).with_name("two_nodes.py"))]
    done = subprocess.run(
        [str(script()), *case, "/mnt/a", "/mnt/b", "--nfs-server"],
        env={**os.environ, "VERS": version, "MEM": "512M", "SHAREDFS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout[-3000:] + done.stderr[-2000:]
    assert done.returncode == 0 and "all well" in done.stdout, said
