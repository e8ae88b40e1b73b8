"""Eight processes on one shelf, on every file system that can be had here; see many.py.

KVSHELF_TEST_STRESS_SECONDS (30): how long the local file systems take together. Half an hour:

    python -m pytest tests/stress -m stress
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.stress.many import TRIED_SECONDS
from tests.stress.mounts import PLACES, Absent, stress

SECONDS = float(os.environ.get("KVSHELF_TEST_STRESS_SECONDS", "30"))
LOCAL = ("here", "ext4", "xfs", "tmpfs", "overlayfs")


def check(name: str, folder: Path, seconds: float) -> None:
    try:
        done = stress(name, folder, seconds)
    except Absent as reason:
        pytest.skip(str(reason))
    said = done.stdout[-2000:] + done.stderr[-4000:]
    assert done.returncode == 0, said
    totals = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(f"{name}: {totals}\n")
    assert totals["kills"] >= seconds / 10
    if name in LOCAL:  # nothing fails there
        assert totals["io_errors"] == totals["timed_out"] == totals["dropped"] == 0, totals


@pytest.mark.timeout(SECONDS / 2 + TRIED_SECONDS + 300)
@pytest.mark.parametrize("name", PLACES)
def test_what_is_loaded_is_what_the_key_says(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, SECONDS * PLACES[name].share)


@pytest.mark.stress
@pytest.mark.timeout(4000)
def test_half_an_hour(tmp_path: Path) -> None:
    check("here", tmp_path, 1800.0)
