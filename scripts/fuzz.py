"""Fuzzes the native core and the Python readers: runs each target for a while, says how far.

    python scripts/fuzz.py [--seconds 60] [--seed N] [--json FILE] [TARGET...]

With clang (clang++, or clang++-N) libFuzzer drives the targets too, else only their own driver,
which needs no more than g++. Both run under AddressSanitizer and UndefinedBehaviorSanitizer.
Targets in Python (scripts/fuzz_python.py) are driven by atheris. The corpus is made from
tests/vectors, anew each time. Exit status 1: a target failed, and its input is in build-fuzz/.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from bench_engine import machine  # noqa: E402 - beside this folder

VECTORS = ROOT / "tests" / "vectors"
TARGETS = ("header", "reader", "tree", "job", "packed")
PYTHON_TARGETS = ("py-header", "py-names", "py-documents", "py-traces")
BUILD = ROOT / "build-fuzz"
LIBFUZZER = ROOT / "build-libfuzzer"
SANITIZERS = "address,undefined"


def find_clang() -> str | None:
    names = ["clang++", *(f"clang++-{version}" for version in range(22, 13, -1))]
    return next((found for name in names if (found := shutil.which(name))), None)


def build(folder: Path, targets: list[str], *options: str) -> None:
    common = ["-DKVSHELF_FUZZ=ON", f"-DKVSHELF_SANITIZE={SANITIZERS}"]
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *common, *options]
    for command in (configure, ["cmake", "--build", str(folder), "--target", *targets]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def run(command: list[str], folder: Path, seconds: float) -> tuple[bool, str]:
    environment = os.environ | {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    done = subprocess.run(  # noqa: S603 - what was just built
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds * 2 + 300,
        check=False,
    )
    return done.returncode == 0, done.stdout


def number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def own_driver(folder: Path, target: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [str(folder / "native" / "fuzz" / f"{target}_fuzz"), "--vectors", str(VECTORS)]
    command += ["--seconds", str(options.seconds), "--seed", str(options.seed)]
    fine, text = run(command, folder, options.seconds)
    return {
        "target": target,
        "driver": "own",
        "fine": fine,
        "runs": number(r"(\d+) runs", text),
        "edges": number(r"(\d+) edges", text),
        "inputs": number(r"(\d+) inputs", text),
        "output": "" if fine else text[-4000:],
    }


def libfuzzer(folder: Path, target: str, options: argparse.Namespace) -> dict[str, Any]:
    binaries = folder / "native" / "fuzz"
    corpus = folder / f"corpus-{target}"
    shutil.rmtree(corpus, ignore_errors=True)
    seeds = [str(binaries / f"{target}_fuzz"), "--vectors", str(VECTORS)]
    write = [*seeds, "--write-seeds", str(corpus)]
    subprocess.run(write, check=True, cwd=folder)  # noqa: S603
    command = [str(binaries / f"{target}_libfuzzer")]
    return as_libfuzzer(command, "libFuzzer", folder, target, options)


def atheris(target: str, options: argparse.Namespace) -> dict[str, Any]:
    shutil.rmtree(BUILD / f"corpus-{target}", ignore_errors=True)
    command = [sys.executable, str(ROOT / "scripts" / "fuzz_python.py"), target]
    return as_libfuzzer(command, "atheris", BUILD, target, options)


def as_libfuzzer(
    command: list[str], driver: str, folder: Path, target: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Run what takes libFuzzer's options and speaks its language."""
    corpus = folder / f"corpus-{target}"
    command += [f"-max_total_time={int(options.seconds)}", f"-seed={options.seed % 2**32}"]
    command += ["-max_len=65536", "-timeout=60", "-print_final_stats=1", str(corpus)]
    fine, text = run(command, folder, options.seconds)
    return {
        "target": target,
        "driver": driver,
        "fine": fine,
        "runs": number(r"number_of_executed_units:\s*(\d+)", text),
        "edges": number(r"cov: (\d+)", text),
        "inputs": sum(1 for _ in corpus.iterdir()),
        "output": "" if fine else text[-4000:],
    }


def build_libfuzzer(targets: list[str]) -> bool:
    """Whether they could be."""
    clang = find_clang()
    if clang is None:
        print("no clang: its libFuzzer is left out (apt-get install clang)")
        return False
    programs = [f"{target}_{driver}" for target in targets for driver in ("fuzz", "libfuzzer")]
    try:
        build(LIBFUZZER, programs, f"-DCMAKE_CXX_COMPILER={clang}")
    except subprocess.CalledProcessError:
        print(f"{clang} cannot build them with libFuzzer, so that is left out")
        return False
    return True


def runs(targets: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a target and driver, as they end."""
    native = [target for target in targets if target in TARGETS]
    if native:
        build(BUILD, [f"{target}_fuzz" for target in native])
    with_clang = bool(native) and build_libfuzzer(native)
    BUILD.mkdir(exist_ok=True)
    print(f"seed {options.seed}, {options.seconds:g} s each, {SANITIZERS}")
    for target in native:
        yield own_driver(BUILD, target, options)
        if with_clang:
            yield libfuzzer(LIBFUZZER, target, options)
    if importlib.util.find_spec("atheris") is None:
        print("no atheris: the targets in Python are left out (pip install atheris)")
        return
    for target in targets:
        if target in PYTHON_TARGETS:
            yield atheris(target, options)


def main() -> int:
    every = (*TARGETS, *PYTHON_TARGETS)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(every)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target and driver")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--add", action="store_true", help="keep other targets' figures there")
    options = parser.parse_args()
    targets = options.targets or list(every)
    if unknown := set(targets) - set(every):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    found = []
    for row in runs(targets, options):
        found.append(row)
        verdict = "fine" if row["fine"] else "FAILED"
        print(
            f"{row['target']:13}{row['driver']:10}{row['runs']:>12,} runs {row['edges']:>6} "
            f"edges {row['inputs']:>5} inputs  {verdict}\n{row['output']}".rstrip(),
            flush=True,
        )
    if options.json:
        kept = [{k: v for k, v in row.items() if k != "output"} for row in found]
        report = {
            "command": f"make fuzz FUZZ_SECONDS={options.seconds:g}",
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "seed": options.seed,
            "seconds": options.seconds,
            "targets": kept,
        }
        if options.add and options.json.exists():
            before = json.loads(options.json.read_text())["targets"]
            report["targets"] = [r for r in before if r["target"] not in targets] + kept
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(row["fine"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
