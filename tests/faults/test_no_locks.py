"""File systems without flock(2), as Lustre without its option: file times tell what is in use."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.faults.test_seccomp import GOOD
from tests.harness import seccomp
from tests.harness.shelf_work import CHUNKS, IDENTITY, store_and_load

pytestmark = pytest.mark.skipif(not seccomp.is_possible(), reason="no seccomp filter known here")

ERRNOS = ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EINVAL", "EPERM", "EIO"]
DAY_SECONDS = 86_400


def scrub(root: Path, number: str) -> tuple[int, list[dict[str, str]]]:
    line = ("kvshelf.cli", "scrub", str(root), "--from-start", "--unused-for", "30d", "--json")
    done = seccomp.run_refused(number, ["flock"], *line)
    values = [json.loads(each) for each in done.stdout.splitlines()]
    return done.returncode, [value["finding"] for value in values if "finding" in value]


def age(root: Path, days: float) -> None:
    """As if nothing of the shelf had been used for so long."""
    then = time.time() - days * DAY_SECONDS
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, (then, then))


@pytest.mark.parametrize("number", ERRNOS)
def test_an_unused_namespace_goes_by_its_times(number: str, tmp_path: Path) -> None:
    assert store_and_load(tmp_path, "none") == GOOD
    assert scrub(tmp_path, number) == (0, [])
    age(tmp_path, 29)
    assert scrub(tmp_path, number) == (0, [])
    age(tmp_path, 31)
    status, findings = scrub(tmp_path, number)
    assert [(each["kind"], each["action"]) for each in findings] == [("unused", "removed")]
    assert status == 1  # a finding, as with locks
    assert not (tmp_path / IDENTITY.folder).exists()
    assert scrub(tmp_path, number) == (0, [])


def test_one_touch_keeps_it(tmp_path: Path) -> None:
    assert store_and_load(tmp_path, "none") == GOOD
    age(tmp_path, 31)
    [*_, last] = tmp_path.rglob("*.kv")
    os.utime(last)
    assert scrub(tmp_path, "ENOSYS") == (0, [])
    assert len(list(tmp_path.rglob("*.kv"))) == CHUNKS


@pytest.mark.parametrize("number", ERRNOS)
def test_an_engine_says_once_that_there_is_no_lock(number: str, tmp_path: Path) -> None:
    done = seccomp.run_refused(number, ["flock"], "tests.harness.shelf_work", str(tmp_path))
    assert json.loads(done.stdout)["engine"] == GOOD
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"{tmp_path}: ")]
    assert len(lines) == 1 and "no lock (flock)" in lines[0]
