"""The stress run on every file system that can be had here, one after another, for the record.

    python -m tests.stress [--seconds 120] [--only NAME...] [--output FILE]

Writes benchmarks/results/stress.json if no other file is named; results that it holds already, of
other file systems, are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    from bench_engine import machine
    from tests.stress.mounts import PLACES, Absent, stress

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--only", nargs="+", choices=list(PLACES), default=list(PLACES))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stress.json"))
    options = parser.parse_args()
    failed = False
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="kvshelf-stress-") as folder:
            try:
                done = stress(name, Path(folder), options.seconds)
            except Absent as reason:
                say(f"{name}: skipped: {reason}")
                continue
        say(f"{name}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
        if done.returncode:
            failed = True
            continue
        text = options.output.read_text() if options.output.exists() else '{"runs": {}}'
        record = json.loads(text)
        record["runs"][name] = {
            "command": f"python -m tests.stress --seconds {options.seconds:g} --only {name}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": {**machine(), "load_1min": round(os.getloadavg()[0], 1)},
            **json.loads(done.stdout.splitlines()[-1]),
        }
        options.output.write_text(json.dumps(record, indent=2) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
