"""Which lines of native/ and src/kvshelf the tests run: one table, the rest named, and JSON.

    python scripts/line_coverage.py [--json FILE] [--least PERCENT] [--add] [PYTEST ARGUMENT...]

Runs the native tests and pytest with an instrumented core, processes that tests start included,
then builds the usual core again. Lines are counted by gcov, which comes with g++, and coverage.py.
With --add, what earlier runs on the same code have counted is kept: a long run in pieces.
Exit status 1: a test failed, or --least is not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from bench_engine import machine  # noqa: E402 - beside this folder

BUILD = ROOT / "build-coverage"
STAMP = ROOT / ".venv" / ".kvshelf"  # make's: removed while the instrumented core is installed
Lines = dict[str, dict[int, bool]]  # file -> line -> whether it ran
# What a machine must have for all of a file: of these, the figure says less than of the others.
NEEDS = {
    "native/src/crc64_x86.cpp": "VPCLMULQDQ, AVX-512",
    "native/src/cuda_device.cpp": "a GPU",  # tests have a driver of host memory
    "native/src/cuda_driver.cpp": "a GPU",
}


def run(*command: str | Path, **environment: str) -> int:
    print("+", " ".join(str(word) for word in command), flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode  # noqa: S603


def install(*, instrumented: bool) -> None:
    """The core in place, as `make setup` does."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    extra = []
    if instrumented:
        extra = ["-C", f"build-dir={BUILD / 'python'}", "-C", "cmake.define.KVSHELF_COVERAGE=ON"]
    STAMP.unlink(missing_ok=True)
    if run(*pip, "--no-build-isolation", "--no-deps", "--editable", ".", *extra) != 0:
        raise SystemExit("the core cannot be built")
    if not instrumented:
        STAMP.touch()


def run_tests(arguments: list[str]) -> bool:
    native = BUILD / "native"
    options = ("-G", "Ninja", "-DKVSHELF_COVERAGE=ON")
    if run("cmake", "-S", ".", "-B", native, *options) or run("cmake", "--build", native):
        raise SystemExit("the native tests cannot be built")
    fine = run("ctest", "--test-dir", native, "--no-tests=error") == 0
    data = str(BUILD / "data" / "coverage")
    command = (sys.executable, "-m", "coverage", "run", "-m", "pytest", "-q", *arguments)
    fine &= run(*command, COVERAGE_FILE=data) == 0
    run(sys.executable, "-m", "coverage", "combine", "-q", "--append", COVERAGE_FILE=data)
    return fine


def native_lines() -> Lines:
    """From gcov's JSON, one for each object; a line that ran in any of them did run."""
    found: Lines = defaultdict(dict)
    notes = sorted(BUILD.rglob("*.gcno"))
    for note in notes:
        # GCC_COLORS and locale do not matter: the output is JSON, one object a line.
        command = ["gcov", "--json-format", "--stdout", note.name]
        done = subprocess.run(command, cwd=note.parent, capture_output=True, check=False)  # noqa: S603
        for text in done.stdout.splitlines():
            for file in json.loads(text)["files"]:
                path = Path(file["file"])
                if not path.is_absolute():
                    path = note.parent / path
                path = path.resolve()
                if not path.is_relative_to(ROOT / "native"):
                    continue
                name = str(path.relative_to(ROOT))
                if name.startswith(("native/tests/", "native/fuzz/")):
                    continue
                for line in file["lines"]:
                    number = line["line_number"]
                    found[name][number] = found[name].get(number, False) or line["count"] > 0
    return dict(found)


def python_lines() -> Lines:
    report = BUILD / "python.json"
    data = str(BUILD / "data" / "coverage")
    run(sys.executable, "-m", "coverage", "json", "-q", "-o", report, COVERAGE_FILE=data)
    files = json.loads(report.read_text())["files"]
    return {
        name: dict.fromkeys(file["executed_lines"], True)
        | dict.fromkeys(file["missing_lines"], False)
        for name, file in files.items()
    }


def ranges(numbers: Iterable[int]) -> Iterator[str]:
    first = last = 0
    for number in [*sorted(numbers), 0]:
        if number == last + 1:
            last = number
            continue
        if first:
            yield str(first) if first == last else f"{first}-{last}"
        first = last = number


def percent(lines: Iterable[bool]) -> float:
    known = list(lines)
    return 100.0 * sum(known) / len(known) if known else 100.0


def report_of(part: str, files: Lines) -> dict[str, object]:
    """Prints files with lines that did not run, the worst first; and the part's sum."""
    whole = percent(ran for lines in files.values() for ran in lines.values())
    count = sum(len(lines) for lines in files.values())
    print(f"\n{part}: {whole:.1f}% of {count:,} lines")
    plain = [lines for name, lines in files.items() if name not in NEEDS]
    without = percent(ran for lines in plain for ran in lines.values())
    if len(plain) < len(files):
        print(f"  without {', '.join(sorted(files.keys() & NEEDS.keys()))}: {without:.1f}%")
    details: dict[str, dict[str, object]] = {}
    for name, lines in sorted(files.items(), key=lambda item: percent(item[1].values())):
        missing = list(ranges(number for number, ran in lines.items() if not ran))
        details[name] = {"percent": round(percent(lines.values()), 1), "not_run": missing}
        if name in NEEDS:
            details[name]["needs"] = NEEDS[name]
        if missing:
            print(f"  {percent(lines.values()):5.1f}%  {name}: {', '.join(missing)}")
    return {
        "percent": round(whole, 1),
        "lines": count,
        "percent_without_needs": round(without, 1),
        "lines_without_needs": sum(len(lines) for lines in plain),
        "files": details,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--least", type=float, default=0.0, metavar="PERCENT", help="of each part")
    parser.add_argument("--add", action="store_true", help="keep what earlier runs counted")
    options, pytest_arguments = parser.parse_known_args()
    if not options.add:
        shutil.rmtree(BUILD / "data", ignore_errors=True)
        for counts in BUILD.rglob("*.gcda"):
            counts.unlink()
    (BUILD / "data").mkdir(parents=True, exist_ok=True)
    (BUILD / "data").chmod(0o777)  # tests become other users
    install(instrumented=True)
    try:
        fine = run_tests(pytest_arguments)
        parts = {"native": native_lines(), "src/kvshelf": python_lines()}
    finally:
        install(instrumented=False)
    report = {part: report_of(part, files) for part, files in parts.items()}
    if options.json:
        result = {
            "command": "make coverage",
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "parts": report,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    reached = all(
        percent(ran for lines in files.values() for ran in lines.values()) >= options.least
        for files in parts.values()
    )
    return 0 if fine and reached else 1


if __name__ == "__main__":
    sys.exit(main())
