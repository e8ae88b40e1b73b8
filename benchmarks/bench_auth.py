"""What tags cost: the same stores and loads with checksums, with an auth_key, and unverified.

    python benchmarks/bench_auth.py

One engine each, in turn within a round, files in the page cache; medians of ratios within rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench_engine import FILE_BYTES, Memory, engine_job, file_system, machine, settle
from kvshelf.engine import EngineConfig
from kvshelf.engine.native import NativeEngine

RESULT = Path(__file__).parent / "results" / "auth.json"


def measure(root: Path, files: int, threads: int, rounds: int) -> dict[str, object]:
    memory = Memory(files)
    config = EngineConfig(io_threads=threads, load_only_threads=0, write_behind=False)
    configs = {
        "checksums": config,
        "tags": replace(config, auth_key=b"k" * 32),
        "unverified": replace(config, verify=False),
    }
    engines = {
        name: NativeEngine(root, [memory.describe()], each, namespace=b"b" * 32, rank=0)
        for name, each in configs.items()
    }
    batches = {name: memory.batch(files, name) for name in configs}
    seconds: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in configs} for kind in ("store", "load")
    }
    for number in range(rounds + 1):  # the first warms up
        order = list(configs)[number % 3 :] + list(configs)[: number % 3]
        for kind in ("store", "load"):
            for name in order:
                took = engine_job(engines[name], kind, batches[name])[1]
                if number > 0:
                    seconds[kind][name].append(took)
                if kind == "store":
                    settle()
        shutil.rmtree(root / "ns")
        settle()
    for engine in engines.values():
        engine.close()
    gigabytes = files * FILE_BYTES / 1e9
    row: dict[str, object] = {"threads": threads}
    for kind, by_name in seconds.items():
        for name, values in by_name.items():
            row[f"{kind}_{name}_gbps"] = round(gigabytes / statistics.median(values), 2)
        pairs = zip(by_name["checksums"], by_name["tags"], strict=True)
        row[f"{kind}_tags_to_checksums"] = round(statistics.median(a / b for a, b in pairs), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, help="default: a temp directory")
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        root = Path(name)
        rows = [
            measure(root, arguments.files, threads, arguments.rounds)
            for threads in arguments.threads
        ]
        kind = file_system(root)
    for row in rows:
        print(row)
    result = {
        "command": "python benchmarks/bench_auth.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "file_system": kind,
        "files": arguments.files,
        "file_bytes": FILE_BYTES,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
