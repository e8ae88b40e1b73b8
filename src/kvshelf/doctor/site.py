"""The directory and its mount: what kind it is, and whose. Reads only."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kvshelf.disk.layout import MARKER
from kvshelf.disk.proof import others_data
from kvshelf.disk.root import check_root, why_not_writable
from kvshelf.doctor.findings import Finding, Severity, fine, note, problem, warning
from kvshelf.doctor.mounts import Mount, Reach
from kvshelf.errors import NotAShelfError


def check_directory(root: Path) -> list[Finding]:
    """Whether the path is a directory that is a shelf or can become one, and ours to write: in such
    a directory a file is made and removed.

    Raises:
        OSError: the file system does not say.
    """
    if not root.is_absolute():
        return [problem("directory", f"{root} is not an absolute path", "give an absolute path")]
    try:
        mode = root.stat()
    except OSError as error:
        remedy = "mount the file system, or make the directory"
        return [problem("directory", f"{root}: {error.strerror}", remedy)]
    if not stat.S_ISDIR(mode.st_mode):
        return [problem("directory", f"{root} is no directory", "give a directory")]
    return _check_use(root, mode)


def _check_use(root: Path, mode: os.stat_result) -> list[Finding]:
    # First: such a mount refuses to write whatever the directory's mode is.
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        return [_read_only()]
    try:
        os.close(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        shelf = _shelf_or_not(root)
    except PermissionError as error:
        return [_not_ours(root, mode, "it cannot be listed", error)]
    if shelf.severity is Severity.PROBLEM:
        return [shelf]
    reason = why_not_writable(root)
    if reason is not None:
        return [_not_ours(root, mode, "no file can be made in it", reason)]
    return [shelf, *_group(root, mode)]


def _not_ours(root: Path, mode: os.stat_result, what: str, error: OSError) -> Finding:
    if error.errno == errno.EROFS:
        return _read_only()
    user = f"user {os.geteuid()}, mode {mode.st_mode & 0o7777:04o}, owner {mode.st_uid}"
    return problem(
        "directory",
        f"{what}: {error.strerror} ({user}:{mode.st_gid})",
        f"chgrp the engines' group, then chmod 2770 {root}",
    )


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
    text = "new folders get the group of the process that makes them (no setgid bit)"
    return [note("group", text, f"if engines run as several users of one group: chmod g+s {root}")]


def check_mount(mount: Mount, *, replicas_elsewhere: bool = True) -> list[Finding]:
    """What is known of this type of file system and these options."""
    findings = [fine("mount", f"{mount.kind} at {mount.point}")]
    if "ro" in mount.options:
        findings.append(_read_only())
    findings += _reach(mount, replicas_elsewhere)
    if mount.kind.startswith("nfs"):
        findings += _nfs(mount)
    if "sync" in mount.options:
        text = "mounted with sync: every write waits for the disk"
        findings.append(warning("mount", text, "mount with async"))
    return findings


def _reach(mount: Mount, replicas_elsewhere: bool) -> Iterator[Finding]:
    known, kind = mount.known, mount.kind
    if known.note:
        yield note("mount", f"{kind}: {known.note}", known.remedy)
    if known.reach is Reach.MEMORY:
        yield note("mount", f"{kind} is this host's memory: it is gone after a restart")
    elif known.reach is Reach.LAYER:
        yield note(
            "mount",
            f"{kind} is this container's own: no other node sees it, and it goes with the "
            "container",
            "mount a volume there",
        )
    elif known.reach is Reach.LOCAL and replicas_elsewhere:
        yield note("mount", f"{kind} is local: other nodes do not see it")
    elif known.reach is Reach.UNKNOWN and replicas_elsewhere:
        named = kind if kind != "unknown" else "its type cannot be read"
        yield note(
            "mount",
            f"{named}: kvshelf does not know whether other nodes see it",
            "kvshelf doctor --peer on two nodes tells",
        )
    if kind == "lustre" and not mount.options & {"flock", "localflock"}:
        text = "lustre without flock: kvshelf scrub --unused-for goes by file times alone"
        yield note("mount", text, "mount with -o flock")


def _nfs(mount: Mount) -> Iterator[Finding]:
    if mount.value("lookupcache") not in ("pos", "positive", "none"):
        yield warning(
            "mount",
            "NFS remembers for up to acdirmax seconds (60 by default) that a chunk was absent, "
            "so what another node stores is found late",
            "mount with lookupcache=positive",
        )
    if "hard" in mount.options:
        yield note(
            "mount",
            "hard NFS: a stopped server hangs I/O threads; kvshelf gives such loads up after "
            "load_stall_seconds and leaves the mount alone until it answers",
        )
    if mount.value("nconnect") in (None, "1"):
        yield note("mount", "NFS over one TCP connection", "nconnect=8 or more is often faster")
