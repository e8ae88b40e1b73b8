"""Writers killed at every call and at random, and power losses: how many, and what was found.

    python benchmarks/bench_crashes.py

Runs tests/crash with the long case and reads what it prints. Writes results/crashes.json.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_engine import RESULTS, file_system, machine

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/bench_crashes.py"
TESTS = ["-m", "pytest", "-s", "-q", "tests/crash", "-m", "stress or not stress"]


def main() -> int:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *TESTS], cwd=ROOT, check=False, capture_output=True, text=True
    )
    print(done.stdout)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        return 1
    every = sum(int(count) for count in re.findall(r"(\d+) kills; chunks found", done.stdout))
    random = sum(int(count) for count in re.findall(r"(\d+) kills at random", done.stdout))
    states = sum(int(count) for count in re.findall(r"(\d+) states", done.stdout))
    figures = {
        "writers killed at every call": f"{every} kills, no partial chunk",
        "writers killed at random": f"{random:,} kills, no partial chunk",
        "power losses modeled": f"{states:,} states",
    }
    result = {
        "command": COMMAND,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "file_system": file_system(Path(tempfile.gettempdir())),
        "seconds": round(time.perf_counter() - begin, 1),
        "rows": [
            {"what": what, "figure": figure, "command": COMMAND} for what, figure in figures.items()
        ],
    }
    (RESULTS / "crashes.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
