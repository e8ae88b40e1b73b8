"""A power loss of a real ext4 (image.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.chunks import CHUNKS

PROGRAMS = ("mkfs.ext4", "e2fsck", "losetup", "unshare", "findmnt")


def why_not() -> str | None:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return "mounting needs root and loop devices"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "may not mount"
    return None


REASON = why_not()


@pytest.mark.slow
@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_a_real_file_system_keeps_what_the_setting_promises(preload: Path, tmp_path: Path) -> None:
    # Mounts end with the namespace, whatever becomes of the test.
    command = ["unshare", "--mount", "--propagation", "private"]
    command += [sys.executable, "-m", "tests.crash.image", str(tmp_path), str(preload)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    sys.stdout.write(f"{found}\n")
    # It bites: without a sync, a file lies damaged under its name, and is called so.
    assert found["none"].get("CORRUPT", 0) > 0
    assert "CORRUPT" not in {**found["data"], **found["full"]}
    # A third of the writers came to the end, and all that they were told of is there.
    assert found["full"]["OK"] >= 4 * CHUNKS
