"""NFS with the real kernel client and server, in a guest; see two_nodes.py for what is asked there.

Skipped with a reason where what the guest needs is absent (nfs_guest.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.faults.test_seccomp import GOOD
from tests.harness.nfs_guest import MOUNTS, run_in_guest, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_two_nodes_share_and_a_stopped_server_hangs_nobody(version: str, tmp_path: Path) -> None:
    case = [sys.executable, str(Path(__file__).with_name("two_nodes.py"))]
    done = run_in_guest([*case, *MOUNTS, "--nfs-server"], tmp_path, version=version)
    said = done.stdout[-3000:] + done.stderr[-2000:]
    assert done.returncode == 0 and "all well" in done.stdout, said


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_doctor_finds_what_engines_find(version: str, tmp_path: Path) -> None:
    case = [sys.executable, "-m", "tests.harness.shelf_work", MOUNTS[0]]
    done = run_in_guest(case, tmp_path, version=version)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["engine"] == GOOD
    severity, message = report["doctor"]["publication"]
    assert severity == "fine" and message.startswith("link(2)")
    assert report["doctor"]["store and load"][0] == "fine"
    problems = [each for each in report["doctor"].values() if each[0] == "problem"]
    assert problems == [] and report["scrub"]["status"] == 0
    assert report["evict"] == {"status": 0, "left": 2}
