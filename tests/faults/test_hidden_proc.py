"""Sandboxes that hide /proc or parts of it: WSL, LXC, ProcSubset=pid, hidepid, chroots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvshelf.core import native
from kvshelf.disk.layout import UNKNOWN_BOOT, owner_is_dead, parse_temp_name, temp_name
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from kvshelf.disk.this_process import is_gone, this_owner
from kvshelf.upkeep.scrub.findings import Action, Finding, Kind
from kvshelf.upkeep.scrub.orphans import Orphans
from tests.faults.test_seccomp import check
from tests.harness.quirk_mount import REPOSITORY
from tests.mounts import mounts_allowed

IDENTITY = Identity({"model": "hidden"})
HIDE = {
    "no boot id": "mount -t tmpfs none /proc/sys/kernel/random",
    "empty boot id": "mount --bind /dev/null /proc/sys/kernel/random/boot_id",
    "odd boot id": "mount --bind /etc/hostname /proc/sys/kernel/random/boot_id",
    "only processes": "mount -t proc -o subset=pid none /proc",
    "hidden processes": "mount -t proc -o hidepid=2 none /proc",
    "no mountinfo": "mount --bind /dev/null /proc/$$/mountinfo",
    "no /proc": "mount -t tmpfs none /proc",
}
# Two temp files, named by Python and by the native core, as killed writers leave them.
LEAVE = """
import sys
from pathlib import Path
from kvshelf.core import native
from kvshelf.disk.layout import temp_name
from kvshelf.disk.this_process import this_owner
for name in (temp_name(this_owner(), 7), native.temp_prefix() + "-8.tmp"):
    (Path(sys.argv[1]) / name).write_bytes(bytes(5000))
"""


def run(hide: str, *line: str, status: int = 0) -> str:
    if not mounts_allowed():
        pytest.skip("mounting is not allowed")
    # $$ is the shell, which becomes the program.
    shell = f'{HIDE[hide]} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, *line],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.mark.parametrize("hide", HIDE)
def test_all_works(hide: str, tmp_path: Path) -> None:
    check(json.loads(run(hide, "-m", "tests.harness.shelf_work", str(tmp_path))))


def judged(root: Path, hours: float) -> list[Finding]:
    """What a scrub says of the temp files so many hours later."""
    folder = os.open(root / IDENTITY.folder / "tmp", os.O_RDONLY)
    try:
        now = max(each.stat().st_mtime for each in (root / IDENTITY.folder / "tmp").iterdir())
        orphans = Orphans(now + 3600 * hours, 24 * 3600, dry_run=True)
        names = sorted(os.listdir(folder))  # noqa: PTH208 - of a descriptor
        return [finding for name in names for finding in orphans.judge(folder, name, name)]
    finally:
        os.close(folder)


@pytest.mark.parametrize("hide", HIDE)
def test_temp_files_are_ours_and_go_by_their_age(hide: str, tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    folder = open_namespace(root, IDENTITY) / "tmp"
    run(hide, "-c", LEAVE, str(folder))
    names = sorted(path.name for path in folder.iterdir())
    owners = [parse_temp_name(name) for name in names]
    assert len(names) == 2 and owners[0] == owners[1] is not None
    if hide not in ("hidden processes", "no mountinfo"):
        assert owners[0] is not None and owners[0].boot == UNKNOWN_BOOT
        assert judged(root, 23) == []
    found = judged(root, 25)
    assert [(each.kind, each.action) for each in found] == [(Kind.ORPHAN, Action.WOULD_REMOVE)] * 2
    # Likewise where the scrub itself sees as little.
    sees_writers = hide in ("hidden processes", "no mountinfo")
    scrub = ("-m", "kvshelf.cli", "scrub", str(root), "--dry-run", "--json")
    summary = json.loads(run(hide, *scrub, status=int(sees_writers)).splitlines()[-1])["summary"]
    assert summary["findings"] == ({"orphan": 2} if sees_writers else {})
    assert summary["writing"] == (0 if sees_writers else 2)


def test_python_and_the_core_name_one_owner() -> None:
    assert temp_name(this_owner(), 5) == f"{native.temp_prefix()}-5.tmp"


def test_what_is_unknown_is_never_dead() -> None:
    here = this_owner()
    unknown: list[dict[str, Any]] = [
        {"boot": UNKNOWN_BOOT},
        {"boot": ""},
        {"pids": 0},
        {"start_ticks": 0},
    ]
    for parts in unknown:
        owner = replace(here, pid=2**22 + 1, **parts)  # no process has this number
        assert owner_is_dead(owner, here=owner, start_ticks_of=lambda _: None) is None
        assert is_gone(owner, replace(here, **parts)) is None


def test_names_without_a_boot_id_of_earlier_versions_are_ours() -> None:
    owner = parse_temp_name("host--4026531836-12-0-3.tmp")
    assert owner is not None and owner.boot == "" and not owner.is_known
    assert temp_name(owner, 3) == "host--4026531836-12-0-3.tmp"
