"""Runs a command on NFS with the kernel's client and server, in a guest that is a process.

    python -m tests.harness.nfs_guest --version 4.2 COMMAND ARGUMENTS...

The guest (user-mode-linux) sees this machine's files and has one export mounted twice, at /mnt/a
and /mnt/b, as two nodes have it. Nothing stays when it ends. Needs root and, from Debian's
packages user-mode-linux, kmod, nfs-kernel-server and e2fsprogs, the programs of ``PROGRAMS``.
nfs_init.py is the guest's side.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = ("linux.uml", "exportfs", "rpc.nfsd", "rpc.mountd", "rpcbind", "mkfs.ext4", "modprobe")
MODULES = Path("/usr/lib/uml/modules")
VERSIONS = ("3", "4.0", "4.1", "4.2")
MOUNTS = ("/mnt/a", "/mnt/b")
EXPORT_BYTES = 1 << 30
_SHM = Path("/dev/shm")


def why_not() -> str | None:
    """The reason why there is no guest with NFS here, or None."""
    if os.geteuid() != 0:
        return "the guest needs root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def run_in_guest(
    command: Sequence[str],
    folder: Path,
    *,
    version: str,
    seconds: float = 300.0,
    memory_mib: int = 512,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in the repository's directory; its status and what it printed.

    Args:
        folder: for the export and what else the guest needs, removed at the end.
        seconds: after these the guest is killed, with status 124.

    Raises:
        OSError: the guest did not start, or its NFS did not.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="guest-") as name:
        place = Path(name)
        image = place / "export.img"
        with image.open("wb") as made:
            made.truncate(EXPORT_BYTES)
        subprocess.run(["mkfs.ext4", "-qF", image], check=True, capture_output=True)
        (place / "lib").mkdir()
        (place / "lib/modules").symlink_to(MODULES)
        job = {"command": list(command), "version": version, "cwd": str(REPOSITORY)}
        (place / "job.json").write_text(json.dumps({**job, "environment": dict(os.environ)}))
        init = place / "init"
        guest = Path(__file__).with_name("nfs_init.py")
        init.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{guest}' '{place}'\n")
        init.chmod(0o755)
        ended = _boot(place, image, init, seconds, memory_mib)
        out, error = (_text(place / each) for each in ("out", "err"))
        if not ended:
            return subprocess.CompletedProcess(list(command), 124, out, error)
        status = _text(place / "status")
        if not status:
            console = _text(place / "console")[-1500:]
            raise OSError(f"the guest with NFS failed: {_text(place / 'setup')[-1500:]}{console}")
        return subprocess.CompletedProcess(list(command), int(status), out, error)


def _boot(place: Path, image: Path, init: Path, seconds: float, memory_mib: int) -> bool:
    """Whether the guest came to its end in time."""
    # Its memory is a file there, which must be mapped as code.
    has_room = _SHM.is_dir() and shutil.disk_usage(_SHM).free > 2 * memory_mib << 20
    line = ["linux.uml", f"mem={memory_mib}M", f"umid={place.name}", f"uml_dir={place}/"]
    line += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "quiet"]
    line += [f"ubda={image}", "con=null", "con0=null,fd:1", f"init={init}"]
    with (place / "console").open("wb") as console:
        guest = subprocess.Popen(
            line,
            env={**os.environ, "TMPDIR": str(_SHM if has_room else place)},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    try:
        guest.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        if guest.poll() is None:
            os.killpg(guest.pid, signal.SIGKILL)
            guest.wait()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--version", choices=VERSIONS, default="4.2")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(f"nfs_guest: {reason}")
    folder = Path(tempfile.gettempdir())
    done = run_in_guest(
        arguments.command, folder, version=arguments.version, seconds=arguments.seconds
    )
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
