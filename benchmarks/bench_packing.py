"""What packing bf16 KV costs and saves on the CPU, against plain write() and read() of all bytes.

    python benchmarks/bench_packing.py [--directory DIR] [--files 16] [--rounds 9] [--codec PROGRAM]

Chunks and the plain side are those of bench_engine.py: 32 MiB each, in the page cache, with as many
threads; numbers are Gaussian, as bf16. The plain side moves all bytes, the engine three quarters of
them, packs or unpacks and verifies. Both take turns; a ratio is the median of the rounds' ratios.
The codec is measured by ``bf16_pack_test --speed``: 256 KiB in one core's cache.

Prints a table and writes benchmarks/results/packing.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench_engine import (
    FILE_BYTES,
    LAYERS,
    PAGE_BYTES,
    RESULTS,
    Memory,
    Plain,
    engine_job,
    file_system,
    machine,
    plain_job,
    settle,
)
from kvshelf.engine import EngineConfig
from kvshelf.engine.native import NativeEngine

CODEC = Path("build-native-test/native/tests/bf16_pack_test")


class Numbers(Memory):
    """Block memory of bf16 numbers; each layer has a scale of its own."""

    def __init__(self, files: int) -> None:
        super().__init__(files)
        rng = np.random.default_rng(2)
        for layer in range(LAYERS):
            floats = rng.standard_normal((self.blocks, PAGE_BYTES // 2), dtype=np.float32)
            floats *= 0.5 + layer / LAYERS
            self.array[layer] = (floats.view("<u4") >> 16).astype("<u2").view(np.uint8)


class Sides:
    """The engine that packs, the one that does not, and plain calls; seconds of each, by round."""

    def __init__(self, root: Path, memory: Memory, files: int, threads: int, behind: bool) -> None:
        self.root, self.files = root, files
        self.plain = Plain(memory, root, threads)
        self.times: dict[str, list[float]] = {}
        self.batches = {name: memory.batch(files, name) for name in ("packed", "unpacked")}
        self.engines = {
            name: NativeEngine(
                root,
                [memory.describe()],
                EngineConfig(
                    io_threads=threads,
                    load_only_threads=0,
                    write_behind=behind,
                    compress=name == "packed",
                ),
                namespace=b"b" * 32,
                rank=0,
            )
            for name in self.batches
        }

    def round(self, number: int) -> None:
        # Whoever comes first finds other caches and free pages than who comes second.
        sides = ["plain", "packed", "unpacked"]
        sides = sides[number % 3 :] + sides[: number % 3]
        for side in sides:
            if side == "plain":
                self._note("write", plain_job(self.plain.pool, self.plain.write, self.files))
            else:
                job = engine_job(self.engines[side], "store", self.batches[side])
                self._note(f"store {side}", job[1])
            settle()
        for side in sides:
            if side == "plain":
                self._note("read", plain_job(self.plain.pool, self.plain.read, self.files))
            else:
                job = engine_job(self.engines[side], "load", self.batches[side])
                self._note(f"load {side}", job[1])
        shutil.rmtree(self.root / "ns")
        self.plain.clear()
        settle()

    def _note(self, what: str, seconds: float) -> None:
        self.times.setdefault(what, []).append(seconds)

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()
        self.plain.pool.shutdown()
        self.plain.root.rmdir()


def measure(
    root: Path, memory: Memory, files: int, threads: int, rounds: int, behind: bool
) -> dict[str, object]:
    sides = Sides(root, memory, files, threads, behind)
    for number in range(rounds + 1):
        sides.round(number)
    stats = sides.engines["packed"].stats()
    sides.close()
    times = {what: seconds[1:] for what, seconds in sides.times.items()}  # the first warms up
    gigabytes = files * FILE_BYTES / 1e9

    def ratio(engine: str, plain: str) -> float:
        pairs = zip(times[engine], times[plain], strict=True)
        return round(statistics.median(b / a for a, b in pairs), 3)

    row: dict[str, object] = {"threads": threads, "write_behind": behind}
    for what, seconds in times.items():
        row[f"{what.replace(' ', '_')}_gbps"] = round(gigabytes / statistics.median(seconds), 2)
    for side in ("packed", "unpacked"):
        row[f"store_{side}_ratio"] = ratio(f"store {side}", "write")
        row[f"load_{side}_ratio"] = ratio(f"load {side}", "read")
    row["saved"] = round(stats.stored_payload_bytes / stats.stored_file_bytes, 4)
    return row


def codec(program: Path) -> dict[str, dict[str, float]]:
    """GB/s of plain bytes on one core, by kind of processor; empty without the program."""
    if not program.exists():
        return {}
    lines = subprocess.run([program, "--speed"], check=True, capture_output=True, text=True).stdout
    found = re.findall(r"(\w+) +pack ([\d.]+) GB/s, unpack ([\d.]+) .* ratio ([\d.]+)", lines)
    return {
        kind: {"pack_gbps": float(pack), "unpack_gbps": float(unpack), "ratio": float(saved)}
        for kind, pack, unpack, saved in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, default=None, help="default: a temp directory")
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--codec", type=Path, default=CODEC)
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    speeds = codec(arguments.codec)
    memory = Numbers(arguments.files)
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        root = Path(name)
        rows = [
            measure(root, memory, arguments.files, arguments.threads, arguments.rounds, behind)
            for behind in (True, False)
        ]
        kind = file_system(root)
    result = {
        "command": " ".join(["python", "benchmarks/bench_packing.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "file_system": kind,
        "file_bytes": FILE_BYTES,
        "files": arguments.files,
        "rounds": arguments.rounds,
        "codec": speeds,
        "rows": rows,
    }
    print(json.dumps(result, indent=2))
    if not arguments.no_save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "packing.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
