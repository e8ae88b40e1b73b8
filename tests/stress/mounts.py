"""Runs a command on one file system after another, each made for it and gone with it.

Local ones live in a mount namespace of their own and end with its last process; a guest runs NFS's
client and server; JuiceFS, CephFS and GlusterFS are processes that end with the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.harness import nfs_guest
from tests.harness.shared_mounts import SYSTEMS, mounted
from tests.stress.many import TRIED_SECONDS

Run = subprocess.CompletedProcess[str]


class Absent(Exception):  # noqa: N818 - not an error: a reason to skip
    """This file system cannot be had here; says why."""


@dataclass(frozen=True)
class Place:
    """Where a command runs: it is given the directories after its own arguments.

    Attributes:
        share: of a run's seconds that this file system gets.
    """

    share: float
    run: Callable[[list[str], Path, float], Run]


def _run(command: list[str], seconds: float, **environment: str) -> Run:
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds + TRIED_SECONDS + 150,
        check=False,
    )


def _here(command: list[str], folder: Path, seconds: float) -> Run:
    return _run([*command, str(folder)], seconds)


def _mounted_by(script: str, *programs: str) -> Callable[[list[str], Path, float], Run]:
    """``script`` mounts at $1; its image, if it needs one, is $1.img."""

    def run(command: list[str], folder: Path, seconds: float) -> Run:
        if os.geteuid() != 0:
            raise Absent("mounting needs root")
        if missing := [each for each in programs if shutil.which(each) is None]:
            raise Absent(f"not installed: {', '.join(missing)}")
        place = folder / "mount"
        place.mkdir(exist_ok=True)
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-euc"]
        probe = _run([*unshare, script, "sh", str(place)], 0)
        if probe.returncode:
            raise Absent(f"cannot be mounted: {probe.stderr.strip()[-200:]}")
        exec_command = script + ' at=$1; shift; exec "$@" "$at"'
        return _run([*unshare, exec_command, "sh", str(place), *command], seconds)

    return run


# GNU mkfs tools and losetup by mount; images are sparse. xfs wants 300 MB.
_IMAGE = 'rm -f "$1.img"; truncate -s 400M "$1.img"; '
EXT4 = _IMAGE + 'mkfs.ext4 -qF "$1.img"; mount -o loop "$1.img" "$1"; '
XFS = _IMAGE + 'mkfs.xfs -q "$1.img"; mount -o loop "$1.img" "$1"; '
BTRFS = _IMAGE + 'mkfs.btrfs -q "$1.img"; mount -o loop "$1.img" "$1"; '
TMPFS = 'mount -t tmpfs -o size=200m none "$1"; '
# The upper layer lies on a tmpfs: on another overlay, as in a container, it may not.
OVERLAY = (
    TMPFS + 'mkdir "$1/l" "$1/u" "$1/w" "$1/m"; '
    'mount -t overlay -o "lowerdir=$1/l,upperdir=$1/u,workdir=$1/w" none "$1/m"; '
    'mount --bind "$1/m" "$1"; '
)


def _nfs(version: str) -> Callable[[list[str], Path, float], Run]:
    def run(command: list[str], folder: Path, seconds: float) -> Run:
        if reason := nfs_guest.why_not():
            raise Absent(reason)
        return nfs_guest.run_in_guest(
            [*command, *nfs_guest.MOUNTS], folder, version=version, seconds=seconds + 140
        )

    return run


def _shared(name: str) -> Callable[[list[str], Path, float], Run]:
    def run(command: list[str], folder: Path, seconds: float) -> Run:
        if reason := SYSTEMS[name].why_not():
            raise Absent(reason)
        with mounted(SYSTEMS[name], folder) as mounts:
            if isinstance(mounts, str):
                raise Absent(mounts)
            return _run([*command, *mounts], seconds)

    return run


# The local ones share a run's seconds; each of the others comes on top with an eighth.
PLACES = {
    "here": Place(1 / 2, _here),
    "ext4": Place(1 / 8, _mounted_by(EXT4, "mkfs.ext4")),
    "xfs": Place(1 / 16, _mounted_by(XFS, "mkfs.xfs")),
    "btrfs": Place(1 / 16, _mounted_by(BTRFS, "mkfs.btrfs")),
    "tmpfs": Place(1 / 8, _mounted_by(TMPFS)),
    "overlayfs": Place(1 / 8, _mounted_by(OVERLAY)),
    "nfs-v3": Place(1 / 8, _nfs("3")),
    "nfs-v4.2": Place(1 / 8, _nfs("4.2")),
    **{name: Place(1 / 8, _shared(name)) for name in SYSTEMS},
}


def stress(name: str, folder: Path, seconds: float, *options: str) -> Run:
    """Run tests.stress.many on one of ``PLACES``.

    Raises:
        Absent: it cannot be had here.
    """
    command = [sys.executable, "-m", "tests.stress.many", "--seconds", str(seconds), *options]
    return PLACES[name].run(command, folder, seconds)
