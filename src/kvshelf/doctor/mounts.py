"""Mounts: which one a path lies on, and what is known of its type. Reads only. Threads: any."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kvshelf.engine.probe import file_system_magic

_PROC = Path("/proc/self")


class Reach(Enum):
    """Who sees what is stored on a file system."""

    SHARED = "shared"  # other nodes may have it mounted too
    LOCAL = "local"
    MEMORY = "memory"  # of this host
    LAYER = "layer"  # of a container
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of a type of file system.

    Attributes:
        note: what a user should know of it; "" if nothing.
        remedy: what to do about that.
    """

    reach: Reach
    note: str = ""
    remedy: str = ""


_SHARED = Kind(Reach.SHARED)
_LOCAL = Kind(Reach.LOCAL)
_OBJECTS = Kind(
    Reach.SHARED,
    "an object store behind a file interface: each chunk is an upload, a rename may be a copy, and "
    "percent limits may not work",
    "compare its speed (kvshelf bench) with computing; limit it with --shelf-limit",
)
_SMB = Kind(
    Reach.SHARED,
    "SMB: the server decides owners and modes, and may refuse links and fsync of folders",
    "leave durability at none; mount with the engines' uid, gid, file_mode and dir_mode",
)
_MACHINE = Kind(
    Reach.SHARED,
    "shared by this machine's host: other nodes see it only if the host shares it with them too",
    "kvshelf doctor --peer on two nodes tells",
)
# By the type in mountinfo, without a first "fuse.". FUSE servers choose these names themselves.
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("nfs", "nfs4"), _SHARED),
    **dict.fromkeys(("ceph", "ceph-fuse", "glusterfs", "beegfs", "beegfs_nodev"), _SHARED),
    **dict.fromkeys(("lustre", "lustre_lite", "gpfs", "mmfs", "panfs", "cvfs", "acfs"), _SHARED),
    **dict.fromkeys(("juicefs", "seaweedfs", "cubefs", "chubaofs", "curvefs"), _SHARED),
    **dict.fromkeys(("mfs", "moosefs", "lizardfs", "saunafs", "quobyte", "xtreemfs"), _SHARED),
    **dict.fromkeys(("wekafs", "orangefs", "pvfs2", "ocfs2", "gfs2", "hf3fs", "dfuse"), _SHARED),
    **dict.fromkeys(("afs", "openafs", "coda", "sshfs", "yrfs", "parastor", "dingofs"), _SHARED),
    **dict.fromkeys(("cifs", "smb3", "smbfs"), _SMB),
    **dict.fromkeys(("s3fs", "goofys", "geesefs", "mountpoint-s3", "gcsfuse"), _OBJECTS),
    **dict.fromkeys(("blobfuse", "blobfuse2", "rclone", "ossfs", "ossfs2"), _OBJECTS),
    **dict.fromkeys(("cosfs", "obsfs", "tosfs", "s3backer", "s3ql"), _OBJECTS),
    **dict.fromkeys(("alluxio", "alluxio-fuse", "hdfs", "fuse_dfs", "hdfs-mount"), _OBJECTS),
    **dict.fromkeys(("9p", "virtiofs", "drvfs", "vboxsf", "vmhgfs", "vmhgfs-fuse"), _MACHINE),
    **dict.fromkeys(("prl_fs", "osxfs", "grpcfuse", "fakeowner"), _MACHINE),
    **dict.fromkeys(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs"), _LOCAL),
    **dict.fromkeys(("bcachefs", "reiserfs", "nilfs2", "vfat", "msdos", "exfat"), _LOCAL),
    **dict.fromkeys(("ntfs", "ntfs3", "ntfs-3g", "fuseblk", "hfs", "hfsplus", "ufs"), _LOCAL),
    **dict.fromkeys(("udf", "minix", "ecryptfs", "encfs", "gocryptfs", "cryfs"), _LOCAL),
    **dict.fromkeys(("tmpfs", "ramfs", "hugetlbfs", "devtmpfs"), Kind(Reach.MEMORY)),
    **dict.fromkeys(("overlay", "overlayfs", "aufs", "fuse-overlayfs"), Kind(Reach.LAYER)),
}
_UNKNOWN = Kind(Reach.UNKNOWN)
# statfs(2), where /proc does not tell.
_MAGIC = {
    0x6969: "nfs",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x19830326: "beegfs",
    0xAAD7AAEA: "panfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb3",
    0x01021997: "9p",
    0x7461636F: "ocfs2",
    0x01161970: "gfs2",
    0x20030528: "orangefs",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x65735546: "fuse",
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0x4D44: "vfat",
    0x2011BAB0: "exfat",
    0x7366746E: "ntfs3",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
}


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    Attributes:
        point: where it is mounted; "?" if that is not known.
        kind: the file system's type: "ext4", "nfs4", "fuse.juicefs"; "unknown" if not known.
        options: of the mount and of its super block; values after "=".
        source: what is mounted: a device, "server:/path", or a word of a FUSE server's choice.
    """

    point: str
    kind: str
    options: frozenset[str]
    source: str = ""

    @property
    def known(self) -> Kind:
        """What is known of its type."""
        if self.kind == "fuse":  # without a type of its own, the server names the source
            return _KINDS.get(self.source.lower(), _UNKNOWN)
        if self.kind == "9p" and "aname=drvfs" in ",".join(self.options):
            return _KINDS["drvfs"]
        return _KINDS.get(self.kind.removeprefix("fuse."), _UNKNOWN)

    def value(self, name: str) -> str | None:
        """Of an option with a value."""
        for option in self.options:
            if option.startswith(f"{name}="):
                return option.partition("=")[2]
        return None


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    device: str
    mount: Mount


def mount_of(path: Path, mountinfo: str | None = None, mount_id: int | None = None) -> Mount:
    """The mount that a path lies on.

    The kernel numbers mounts, so that bind mounts, subvolumes of btrfs and several mounts of one
    device are told apart. Where it does not tell the number: of the mounts of the path's device, or
    else of all, the deepest above it, of equal ones the last. Where there is no mountinfo, the type
    alone, by statfs(2).

    Args:
        mountinfo: text of /proc/self/mountinfo; read if left out, and the number with it.

    Raises:
        OSError: the path is not there.
    """
    place = path.resolve()
    device = place.stat().st_dev
    if mountinfo is None:
        try:
            mountinfo = (_PROC / "mountinfo").read_text("utf-8", "surrogateescape")
        except OSError:
            return Mount("?", _kind_by_magic(place), frozenset())
        mount_id = _mount_id(place)
    lines = [line for line in map(_parse, mountinfo.splitlines()) if line is not None]
    by_number = [line.mount for line in lines if line.number == mount_id]
    if by_number:
        return by_number[-1]
    wanted = f"{os.major(device)}:{os.minor(device)}"
    above = [line for line in lines if place.is_relative_to(line.mount.point)]
    of_device = [line for line in above if line.device == wanted]
    # btrfs has one device in stat(2), another in mountinfo.
    mount = _deepest(of_device) or _deepest(above)
    return mount or Mount("?", _kind_by_magic(place), frozenset())


def _deepest(lines: Iterable[_Line]) -> Mount | None:
    found = None
    for line in lines:
        if found is None or len(line.mount.point) >= len(found.point):
            found = line.mount
    return found


def _parse(line: str) -> _Line | None:
    left, _, right = line.partition(" - ")
    fields, more = left.split(), right.split()
    if len(fields) < 6 or len(more) < 3 or not fields[0].isdecimal():
        return None
    options = frozenset({*fields[5].split(","), *more[2].split(",")})
    mount = Mount(_unescaped(fields[4]), more[0], options, _unescaped(more[1]))
    return _Line(int(fields[0]), fields[2], mount)


def _unescaped(text: str) -> str:
    """Spaces and their like stand in mountinfo as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _mount_id(place: Path) -> int | None:
    """Number of the mount (/proc/self/fdinfo, "mnt_id"); None if the kernel does not tell."""
    for flags in (os.O_RDONLY | os.O_DIRECTORY, os.O_PATH):  # the first mounts what is automounted
        with contextlib.suppress(OSError):
            descriptor = os.open(place, flags | os.O_CLOEXEC)
            try:
                text = (_PROC / f"fdinfo/{descriptor}").read_text("utf-8", "replace")
            finally:
                os.close(descriptor)
            match = re.search(r"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
            return int(match[1]) if match else None
    return None


def _kind_by_magic(place: Path) -> str:
    return _MAGIC.get(file_system_magic(place), "unknown")
