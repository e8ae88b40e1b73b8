"""The directory and its mount: what kind it is, whose, how full. Reads only."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from kvshelf.doctor.findings import Finding, fine, note, problem, warning
from kvshelf.errors import NotAShelfError
from kvshelf.layout import MARKER
from kvshelf.proof import others_data
from kvshelf.root import check_root
from kvshelf.text import bytes_text

# statvfs(3) of file systems that do not count inodes: 0, or all ones (CephFS).
_UNCOUNTED = (0, 2**64 - 1)
_NEARLY_FULL = 0.9
_MOUNTINFO = Path("/proc/self/mountinfo")
_NETWORK = {
    "nfs",
    "nfs4",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "glusterfs",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.juicefs",
    "fuse.mfs",
    "cifs",
    "9p",
    "virtiofs",
}
_IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    Attributes:
        kind: the file system's type: "ext4", "nfs4", "fuse.juicefs".
        options: of the mount and of its super block; values after "=".
    """

    point: str
    kind: str
    options: frozenset[str]

    @property
    def shared(self) -> bool:
        """Whether other nodes may have it mounted too, by its type."""
        return self.kind in _NETWORK

    def value(self, name: str) -> str | None:
        """Of an option with a value."""
        for option in self.options:
            if option.startswith(f"{name}="):
                return option.partition("=")[2]
        return None


def mount_of(path: Path, mountinfo: str | None = None) -> Mount:
    """The mount that a path lies on: of those of its device the deepest above it (one device may
    be mounted in several places), of equal ones the last.

    Raises:
        OSError: the path is not there.
    """
    place = path.resolve()
    device = place.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    text = _MOUNTINFO.read_text("utf-8", "surrogateescape") if mountinfo is None else mountinfo
    found = Mount("?", "unknown", frozenset())
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, more = left.split(), right.split()
        if len(fields) < 6 or len(more) < 3 or fields[2] != wanted:
            continue
        # Spaces and their like stand there as octal escapes.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if place.is_relative_to(point) and (
            found.kind == "unknown" or len(point) >= len(found.point)
        ):
            options = {*fields[5].split(","), *more[2].split(",")}
            found = Mount(point, more[0], frozenset(options))
    return found


def check_directory(root: Path) -> list[Finding]:
    """Whether the path is a directory that is a shelf or can become one, and ours to write.

    Raises:
        OSError: the file system does not say.
    """
    if not root.is_absolute():
        return [problem("directory", f"{root} is not an absolute path", "give an absolute path")]
    try:
        mode = root.stat()
    except OSError as error:
        return [
            problem(
                "directory",
                f"{root}: {error.strerror}",
                "mount the file system, or make the directory",
            )
        ]
    if not stat.S_ISDIR(mode.st_mode):
        return [problem("directory", f"{root} is no directory", "give a directory")]
    # First: such a mount refuses to write whatever the directory's mode is.
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        return [_read_only()]
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        return [
            problem(
                "directory",
                f"this user ({os.geteuid()}) may not write to it (mode {mode.st_mode & 0o7777:04o}"
                f", owner {mode.st_uid}:{mode.st_gid})",
                f"chgrp the engines' group, then chmod 2770 {root}",
            )
        ]
    return [_shelf_or_not(root), *_group(root, mode)]


def _read_only() -> Finding:
    return problem("mount", "it is mounted read-only", "mount it read-write")


def _shelf_or_not(root: Path) -> Finding:
    if os.path.lexists(root / MARKER):
        try:
            check_root(root)
        except (OSError, NotAShelfError) as error:
            return problem("directory", str(error), "use a directory of its own")
        return fine("directory", f"{root} is a shelf")
    other = others_data(root)
    if other is not None:
        return problem(
            "directory",
            f"it holds other data ({other!r}) and no {MARKER}",
            f"make an empty directory for kvshelf: mkdir {root}/kvshelf",
        )
    return fine("directory", f"{root} is empty and can become a shelf")


def _group(root: Path, mode: os.stat_result) -> list[Finding]:
    if mode.st_mode & stat.S_ISGID or mode.st_mode & 0o077 == 0:
        return []
    return [
        note(
            "group",
            "new folders get the group of the process that makes them (no setgid bit)",
            f"if engines run as several users of one group: chmod g+s {root}",
        )
    ]


def check_mount(mount: Mount, *, replicas_elsewhere: bool = True) -> list[Finding]:
    """What is known of this type of file system and these options."""
    findings = [fine("mount", f"{mount.kind} at {mount.point}")]
    if "ro" in mount.options:
        findings.append(_read_only())
    if mount.kind in _IN_MEMORY:
        findings.append(
            note("mount", f"{mount.kind} is this host's memory: it is gone after a restart")
        )
    elif not mount.shared and replicas_elsewhere:
        findings.append(note("mount", f"{mount.kind} is local: other nodes do not see it"))
    if mount.kind.startswith("nfs"):
        findings += _nfs(mount)
    if "sync" in mount.options:
        findings.append(
            warning(
                "mount", "mounted with sync: every write waits for the disk", "mount with async"
            )
        )
    return findings


def _nfs(mount: Mount) -> list[Finding]:
    found = []
    if mount.value("lookupcache") not in ("pos", "positive", "none"):
        found.append(
            warning(
                "mount",
                "NFS remembers for up to acdirmax seconds (60 by default) that a chunk was absent, "
                "so what another node stores is found late",
                "mount with lookupcache=positive",
            )
        )
    if "hard" in mount.options:
        found.append(
            note(
                "mount",
                "hard NFS: a stopped server hangs I/O threads; kvshelf gives such loads up after "
                "load_stall_seconds and leaves the mount alone until it answers",
            )
        )
    nconnect = mount.value("nconnect")
    if nconnect in (None, "1"):
        found.append(
            note("mount", "NFS over one TCP connection", "nconnect=8 or more is often faster")
        )
    return found


def check_room(root: Path) -> list[Finding]:
    """Free bytes and inodes.

    Raises:
        OSError: the file system does not say.
    """
    numbers = os.statvfs(root)
    total, free = numbers.f_blocks * numbers.f_frsize, numbers.f_bavail * numbers.f_frsize
    findings = []
    used = 1 - free / total if total else 0.0
    text = f"{bytes_text(free)} of {bytes_text(total)} free ({used:.0%} used)"
    if used > _NEARLY_FULL:
        findings.append(
            warning("room", text, "free some, or set a limit so that kvshelf evicts in time")
        )
    else:
        findings.append(fine("room", text))
    if numbers.f_files in _UNCOUNTED or numbers.f_ffree in _UNCOUNTED:
        findings.append(fine("inodes", "not counted by this file system"))
    elif numbers.f_ffree < (1 - _NEARLY_FULL) * numbers.f_files:
        findings.append(
            warning(
                "inodes",
                f"{numbers.f_ffree:,} of {numbers.f_files:,} free",
                "larger chunks (block_size), or a file system with more inodes",
            )
        )
    else:
        findings.append(fine("inodes", f"{numbers.f_ffree:,} of {numbers.f_files:,} free"))
    return findings
