"""NFS with the real kernel client and server, in a guest; see two_nodes.py for what is asked there.

Skipped with a reason where the guest or what it needs is absent (shared_mounts.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.shared_mounts import knfs_script, why_no_nfs

REASON = why_no_nfs()
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_two_nodes_share_and_a_stopped_server_hangs_nobody(version: str, tmp_path: Path) -> None:
    case = [sys.executable, str(Path(__file__).with_name("two_nodes.py"))]
    done = subprocess.run(
        [str(knfs_script()), *case, "/mnt/a", "/mnt/b", "--nfs-server"],
        env={**os.environ, "VERS": version, "MEM": "512M", "SHAREDFS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout[-3000:] + done.stderr[-2000:]
    assert done.returncode == 0 and "all well" in done.stdout, said
