"""Container profiles that refuse newer system calls: everything goes on by the older ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import seccomp
from tests.harness.shelf_work import CHUNKS

pytestmark = pytest.mark.skipif(not seccomp.is_possible(), reason="no seccomp filter known here")

# libc makes no thread where clone3(2) is refused otherwise than with ENOSYS.
NEWER = sorted(set(seccomp.CALLS) - {"clone3"})
# Python itself does not start if this is refused otherwise than with EPERM or ENOSYS.
BUT_RANDOM = [call for call in NEWER if call != "getrandom"]
# What openat2(2), renameat2(2) and faccessat2(2) answer where the file is the reason.
AMBIGUOUS = ("EPERM", "EACCES", "EINVAL", "EOPNOTSUPP", "ENOTTY")
GOOD = {"stored": ["OK"], "again": ["OK"], "found": ["OK"], "loaded": ["OK"], "same": True}


def worked(number: str, calls: list[str], root: Path, durability: str = "none") -> dict[str, Any]:
    line = ("tests.harness.shelf_work", str(root), durability)
    done = seccomp.run_refused(number, calls, *line)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def check(report: dict[str, Any]) -> None:
    assert report["engine"] == GOOD
    severities = {name: severity for name, (severity, _) in report["doctor"].items()}
    assert {"problem"} & set(severities.values()) == set(), report["doctor"]
    assert severities["publication"] == severities["store and load"] == "fine"
    assert report["scrub"]["status"] == 0, report["scrub"]
    assert report["scrub"]["values"][-1]["summary"]["files"] == CHUNKS
    assert report["evict"] == {"status": 0, "left": 2}


@pytest.mark.parametrize("number", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize("call", NEWER)
def test_one_call_that_is_refused(call: str, number: str, tmp_path: Path) -> None:
    check(worked(number, [call], tmp_path))


@pytest.mark.parametrize("number", ["ENOSYS", *AMBIGUOUS])
def test_all_of_them(number: str, tmp_path: Path) -> None:
    report = worked(number, NEWER if number in ("EPERM", "ENOSYS") else BUT_RANDOM, tmp_path)
    check(report)
    assert "link(2)" in report["doctor"]["publication"][1]


def test_threads_without_clone3(tmp_path: Path) -> None:
    check(worked("ENOSYS", [*NEWER, "clone3"], tmp_path))


@pytest.mark.parametrize("durability", ["data", "full"])
def test_durable_stores(durability: str, tmp_path: Path) -> None:
    check(worked("EPERM", NEWER, tmp_path, durability))
