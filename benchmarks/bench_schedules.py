"""Random fault schedules, and one vLLM engine under them.

    python benchmarks/bench_schedules.py shelves [--count 10000] [--first 0] [--processes 2]
    python benchmarks/bench_schedules.py engine [--seconds 1200] [--seed 0]

``shelves`` runs tests/faults/schedules.py, ``engine`` keeps a real vLLM CPU engine busy while
random faults of its system calls come and go (tests/faults/engine_schedules.py). Each replaces its
part of benchmarks/results/schedules.json. Exit status 1 if anything does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_engine import file_system, machine

RESULTS = Path(__file__).parent / "results/schedules.json"


def write_result(path: Path, part: str, figures: dict[str, object]) -> None:
    """Replaces a part of the file."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[part] = {
        "command": " ".join(["python", "benchmarks/bench_schedules.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "file_system": file_system(Path(tempfile.gettempdir())),
        **figures,
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


def shelves(arguments: argparse.Namespace) -> bool:
    from tests.faults.schedules import Total, run_many

    def write(total: Total) -> None:
        print(total.line(), flush=True)
        write_result(arguments.out, "shelves", total.as_json())

    total = run_many(arguments.first, arguments.count, arguments.processes, on_progress=write)
    write(total)
    return not total.failed


def engine(arguments: argparse.Namespace) -> bool:
    from tests.faults.engine_schedules import EngineRun

    with tempfile.TemporaryDirectory(prefix="kvshelf-schedules-") as folder:
        run = EngineRun(Path(folder), arguments.seed)
        figures = run.go(arguments.seconds)
    print(json.dumps(figures, indent=1))
    write_result(arguments.out, "engine", figures)
    return not run.wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["shelves", "engine"])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=10_000, help="how many seeds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1200.0, help="of the engine's requests")
    parser.add_argument("--seed", type=int, default=0, help="of the engine's faults")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    holds = {"shelves": shelves, "engine": engine}[arguments.what](arguments)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
