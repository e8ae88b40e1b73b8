"""A command in the guest with NFS: its two mounts, its end, and what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.nfs_guest import MOUNTS, run_in_guest, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_two_mounts_of_one_export(version: str, tmp_path: Path) -> None:
    a, b = MOUNTS
    script = f"cat /proc/mounts; echo shared > {a}/file; cat {b}/file; echo no >&2; exit 3"
    done = run_in_guest(["sh", "-c", script], tmp_path, version=version)
    *mounts, shared = done.stdout.splitlines()
    assert shared == "shared"
    options = {line.split()[1]: line.split()[3].split(",") for line in mounts}
    for each in MOUNTS:
        assert {f"vers={version}", "nosharecache", "hard"} <= set(options[each]), options[each]
    assert (done.stderr, done.returncode) == ("no\n", 3)
    assert list(tmp_path.iterdir()) == []


def test_one_that_does_not_end(tmp_path: Path) -> None:
    done = run_in_guest(["sh", "-c", "echo begun; sleep 600"], tmp_path, version="4.2", seconds=25)
    assert (done.returncode, done.stdout) == (124, "begun\n")
    assert list(tmp_path.iterdir()) == []


def test_a_guest_without_nfs_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mount"):
        run_in_guest(["true"], tmp_path, version="5")
