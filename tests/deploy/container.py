"""Becomes the process of a container: its own root folder, its mounts, its user, no privileges.

Run as root in a mount namespace of its own: ``unshare --mount python container.py SPEC``, where
SPEC is JSON: ``root`` (an empty folder), ``keep`` (paths of this machine that the process needs),
``mounts`` ([source, target] pairs; a source "tmpfs" is memory), ``uid``, ``gid``, ``groups``,
``env``, ``argv``, ``cgroup`` (a folder of the memory controller, or null). Everything of this
machine that is not named is read-only or not there.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

# The rest of the machine's top folders is the "image"; these are empty in it.
EMPTY = {"tmp", "root", "home", "mnt", "media", "run", "srv", "boot", "lost+found"}
PR_SET_NO_NEW_PRIVS = 38


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def build(root: Path, keep: list[str], mounts: list[list[str]]) -> None:
    """The container's root folder: read-only, but for its volumes."""
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "-o", "mode=755", "none", root)
    for entry in sorted(Path("/").iterdir()):
        target = root / entry.name
        if entry.is_symlink():
            target.symlink_to(entry.readlink())
        elif entry.name in EMPTY:
            target.mkdir()
        elif entry.is_dir():
            target.mkdir()
            mount("--rbind", entry, target)
    for path in sorted(keep):
        inside = root / path.lstrip("/")
        if not inside.exists():
            inside.mkdir(parents=True)
            mount("--rbind", path, inside)
    for source, target in mounts:
        inside = root / target.lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        if target == "/tmp":  # what is kept below it must stay in sight
            below(Path(source), root, [path for path in keep if path.startswith("/tmp/")])
        if source == "tmpfs":
            mount("-t", "tmpfs", "-o", "mode=1777", "none", inside)
        else:
            mount("--rbind", source, inside)
    mount("-o", "remount,bind,ro", root)


def below(volume: Path, root: Path, kept: list[str]) -> None:
    """Show the kept paths of /tmp inside the volume that hides it."""
    for path in kept:
        inside = volume / path.removeprefix("/tmp/")
        inside.mkdir(parents=True, exist_ok=True)
        mount("--rbind", root / path.lstrip("/"), inside)


def main() -> None:
    spec = json.loads(sys.argv[1])
    root = Path(spec["root"])
    if spec["cgroup"] is not None:
        (Path(spec["cgroup"]) / "cgroup.procs").write_text(str(os.getpid()))
    build(root, spec["keep"], spec["mounts"])
    os.chroot(root)
    os.chdir("/")
    os.setgroups(spec["groups"])
    os.setgid(spec["gid"])
    os.setuid(spec["uid"])  # from root to somebody: the kernel drops all capabilities
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.umask(0o022)
    os.execve(spec["argv"][0], spec["argv"], spec["env"])


if __name__ == "__main__":
    main()
