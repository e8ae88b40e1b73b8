"""Unpack Pythons that this machine lacks, with headers, from Debian's suites: a root for each.

    python scripts/pythons.py DIR [SUITE ...]

``DIR/SUITE-ARCH`` becomes a directory for chroot(8) with that suite's Python. Nothing is installed
on the machine. Needs root, apt-get and dpkg-deb. A root of another architecture runs where the
kernel knows how (binfmt_misc and qemu-user-static).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
ALSO = ("libc6", "bash", "coreutils", "ca-certificates")


@dataclass(frozen=True)
class Suite:
    """A suite of Debian and the Python that it has."""

    name: str
    python: str
    arch: str = "amd64"

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.arch}"


SUITES = (Suite("trixie", "3.13"), Suite("sid", "3.14"), Suite("trixie", "3.13", "arm64"))


class AbsentError(Exception):
    """This Python cannot be had here; says why."""


def unpack(suite: Suite, folder: Path) -> Path:
    """Make the root of a suite below ``folder`` and return it; one that is there is left alone.

    Raises:
        AbsentError: it cannot be fetched, or does not run here.
    """
    root = folder / suite.folder
    if not (root / ".done").is_file():
        try:
            _fetch(suite, folder / f"{suite.folder}.apt", root)
        except (OSError, subprocess.SubprocessError) as error:
            raise AbsentError(f"cannot be fetched: {error}") from error
        (root / ".done").touch()
    try:
        done = run_in(root, [f"/usr/bin/python{suite.python}", "-V"], capture_output=True)
    except OSError as error:
        raise AbsentError(f"does not run here: {error}") from error
    if done.returncode:
        raise AbsentError(f"does not run here: {done.stderr.strip()}")
    return root


def _fetch(suite: Suite, scratch: Path, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for part in ("state/lists/partial", "cache/archives/partial"):
        (scratch / part).mkdir(parents=True, exist_ok=True)
    (scratch / "status").touch()
    source = f"deb [signed-by={KEYS}] {MIRROR} {suite.name} main\n"
    (scratch / "sources.list").write_text(source)
    options = {
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": scratch / "state",
        "Dir::Cache": scratch / "cache",
        "Dir::State::status": scratch / "status",
        "Debug::NoLocking": "1",
        "APT::Architecture": suite.arch,
        "APT::Architectures": suite.arch,
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    packages = [f"python{suite.python}-venv", f"python{suite.python}-dev", *ALSO]
    install = ["install", "-y", "--download-only", "--no-install-recommends", *packages]
    for line in ([*apt, "update"], [*apt, *install]):
        subprocess.run(line, check=True, timeout=600, stdout=subprocess.DEVNULL)  # noqa: S603 - ours
    root.mkdir(parents=True)
    for package in sorted((scratch / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True, timeout=60)  # noqa: S603, S607
    shutil.rmtree(scratch)
    for part in ("proc", "dev", "tmp"):
        (root / part).mkdir(exist_ok=True)


def run_in(
    root: Path, command: list[str], *, binds: tuple[Path, ...] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a command in a root, with /dev, /proc and the directories ``binds`` of this machine.

    Mounts live in a namespace of the command and end with it.
    """
    script = 'root=$1; shift; while [ "$1" != -- ]; do '
    script += 'mkdir -p "$root$1"; mount --rbind "$1" "$root$1"; shift; done; shift; '
    script += 'cp -L /etc/resolv.conf "$root/etc/resolv.conf" || true; exec chroot "$root" "$@"'
    line = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", str(root)]
    line += ["/dev", "/proc", *map(str, binds), "--", *command]
    return subprocess.run(line, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]  # noqa: S603 - ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("suite", nargs="*", help="as trixie-amd64; default: all")
    args = parser.parse_args()
    for suite in SUITES:
        if args.suite and suite.folder not in args.suite:
            continue
        try:
            print(f"Python {suite.python}: {unpack(suite, args.folder.resolve())}")
        except AbsentError as reason:
            print(f"Python {suite.python} of {suite.folder}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
