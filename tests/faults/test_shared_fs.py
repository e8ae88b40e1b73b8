"""JuiceFS, CephFS and GlusterFS, each mounted twice as on two nodes; see two_nodes.py.

Each is skipped with a reason where its programs are absent.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.shared_mounts import SYSTEMS, mounted


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SYSTEMS)
def test_two_nodes_share(name: str, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    if reason := system.why_not():
        pytest.skip(reason)
    with mounted(system, tmp_path) as mounts:
        if isinstance(mounts, str):
            pytest.skip(mounts)
        case = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), *mounts]
        done = subprocess.run(case, capture_output=True, text=True, timeout=150, check=False)
    said = done.stdout[-3000:] + done.stderr[-2000:]
    assert done.returncode == 0 and "all well" in done.stdout, said
