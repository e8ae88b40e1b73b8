"""Thousands of seeded faults through SGLang's controller: wrong bytes, hangs.

    python benchmarks/bench_sglang_faults.py [--seeds 10000] [--json FILE]

Runs ``tests/sglang/schedules.py`` in processes with the library of faulty_calls.py preloaded. Half
of the seeds have a page a chunk, half four. ``make test-sglang`` shows the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "demo"))

from tests.harness.faulty_calls import FaultyCalls  # noqa: E402

SEEDS_A_PROCESS = 250


def run(first: int, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        shelf = Path(name) / "shelf"
        shelf.mkdir()
        rules = FaultyCalls(Path(name) / "rules", shelf)
        command = [sys.executable, "-m", "tests.sglang.schedules"]
        done = subprocess.run(
            [*command, str(rules.file), str(shelf), str(first), str(count)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={
                **os.environ,
                **rules.environment(),
                "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), "demo"]),
            },
            check=True,
        )
        told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    total, longest = Counter[str](), 0.0
    for number in range(0, given.seeds, SEEDS_A_PROCESS):
        # An odd first seed means four pages a chunk.
        told = run(
            number + number // SEEDS_A_PROCESS % 2, min(SEEDS_A_PROCESS, given.seeds - number)
        )
        longest = max(longest, told.pop("longest_seconds"))
        total.update(told)
        print(json.dumps({**total, "longest_seconds": longest}), flush=True)
    if given.json:
        given.json.write_text(json.dumps({**total, "longest_seconds": longest}, indent=1) + "\n")
    return int(bool(total["wrong"] or total["overwritten"]))


if __name__ == "__main__":
    sys.exit(main())
