"""The first process of the guest of nfs_guest.py: serves NFS, mounts it twice, runs a command.

Standard library only. Its argument is the folder with job.json; there it leaves the command's
output and status, or in ``setup`` why there was no NFS.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EXPORT, STATE, NFSD = "/mnt/export", "/mnt/state", Path("/proc/fs/nfsd")
MOUNTS = ("/mnt/a", "/mnt/b")
_POWER_OFF = 0x4321FEDC  # linux/reboot.h


def run(*line: str) -> None:
    """Raises subprocess.CalledProcessError, with what it said."""
    subprocess.run(line, check=True, capture_output=True, text=True, timeout=60)


def mount(kind: str, source: str, target: str, *options: str) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    run("mount", "-i", "-t", kind, *options, source, target)


def prepare(place: Path) -> None:
    """What a machine has before it serves anything."""
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys")):
        mount(kind, kind, target)
    for target in ("/run", "/mnt", "/dev/shm"):
        mount("tmpfs", "tmpfs", target)
    run("ip", "link", "set", "lo", "up")
    run("modprobe", "-d", str(place), "-a", "nfsd", "nfsv3", "nfsv4")


def serve() -> None:
    """The export, without grace periods: a client that comes back need not wait."""
    mount("ext4", "/dev/ubda", EXPORT)
    for folder in ("sm", "sm.bak", "v4recovery"):
        Path(STATE, folder).mkdir(parents=True)
    for file in ("etab", "rmtab"):
        Path(STATE, file).touch()
    run("mount", "--bind", STATE, "/var/lib/nfs")
    mount("nfsd", "nfsd", str(NFSD))
    # Both mounts are one client to the server, which would never call a delegation back.
    Path("/proc/sys/fs/leases-enable").write_text("0")
    for name in ("nfsv4gracetime", "nfsv4leasetime"):
        (NFSD / name).write_text("10")
    run("rpcbind")
    run("exportfs", "-o", "rw,async,insecure,no_root_squash,no_subtree_check,fsid=0", f"*:{EXPORT}")
    run("rpc.mountd", "--port", "20048")
    run("rpc.nfsd", "4")
    (NFSD / "v4_end_grace").write_text("Y")


def connect(version: str) -> None:
    """Two mounts that share no cache, as on two nodes."""
    options = ["proto=tcp", "addr=127.0.0.1", "nosharecache", f"vers={version}"]
    source = "127.0.0.1:/"
    if version == "3":
        source = f"127.0.0.1:{EXPORT}"
        options += ["mountproto=tcp", "mountport=20048", "nolock"]
    for target in MOUNTS:
        mount("nfs", source, target, "-o", ",".join(options))


def work(place: Path, job: dict[str, Any]) -> int:
    with (place / "out").open("wb") as out, (place / "err").open("wb") as error:
        command = subprocess.Popen(
            job["command"],
            cwd=job["cwd"],
            env=job["environment"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=error,
        )
        while (status := command.poll()) is None:
            time.sleep(0.2)
            for each in (out, error):  # what was printed survives a guest that is killed
                os.fsync(each.fileno())
        return status


def main(place: Path) -> None:
    os.environ["PATH"] = PATH
    job = json.loads((place / "job.json").read_text())
    try:
        prepare(place)
        serve()
        connect(job["version"])
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or ""
        (place / "setup").write_text(f"{error}\n{said}\n")
        return
    (place / "status").write_text(str(work(place, job)))
    subprocess.run(["umount", "-l", *MOUNTS], check=False, capture_output=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    finally:
        os.sync()
        ctypes.CDLL(None).reboot(_POWER_OFF)
