"""How long a start takes to know its weights: every byte hashed, and the cached digest.

    python benchmarks/bench_identity.py [--gb 16] [--files 4] [--directory DIR]

Makes safetensors files of that size, so that they lie in the page cache as after loading them, and
names them as an engine does: three times hashed, three times from the cache of digests. Prints and
writes benchmarks/results/identity.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

from bench_engine import RESULTS, file_system, machine
from kvshelf.config import Settings
from kvshelf.weights import weights_of
from kvshelf.weights.cache import RACY_SECONDS

ROUNDS = 3
_BLOCK_BYTES = 64 << 20


def make_weights(folder: Path, size: int, files: int) -> int:
    """Files with one tensor each, of random blocks that repeat; returns their bytes."""
    block = os.urandom(_BLOCK_BYTES)
    blocks = max(1, size // files // _BLOCK_BYTES)
    names = {}
    for i in range(files):
        name = f"model-{i + 1:05}-of-{files:05}.safetensors"
        names[f"w{i}"] = name
        count = blocks * _BLOCK_BYTES
        tensor = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
        header = json.dumps({f"w{i}": tensor}).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for _ in range(blocks):
                file.write(block)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return sum(path.stat().st_size for path in folder.iterdir())


def seconds_of(folder: Path, settings: Settings, rounds: int) -> tuple[list[float], str]:
    model = SimpleNamespace(model=str(folder), revision=None)
    load = SimpleNamespace(load_format="auto", download_dir=None)
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        weights = weights_of(model, load, settings)
        seconds.append(time.perf_counter() - begun)
    return seconds, weights.how


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=16.0)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvshelf-bench-", dir=arguments.directory) as made:
        folder = Path(made) / "model"
        folder.mkdir()
        size = make_weights(folder, int(arguments.gb * 1e9), arguments.files)
        time.sleep(RACY_SECONDS + 1)  # files that are so new are never cached
        hashed, how = seconds_of(folder, Settings(weights_cache_dir="off"), ROUNDS)
        cache = Settings(weights_cache_dir=str(Path(made) / "cache"))
        first, _ = seconds_of(folder, cache, 1)
        cached, cached_how = seconds_of(folder, cache, ROUNDS)
        assert cached_how == "cached digest", cached_how
        result = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "file_system": file_system(folder),
            "gb": round(size / 1e9, 2),
            "files": arguments.files,
            "rounds": ROUNDS,
            "hash_seconds": [round(each, 2) for each in hashed],
            "hash_seconds_median": round(statistics.median(hashed), 2),
            "hash_gb_per_second": round(size / 1e9 / statistics.median(hashed), 2),
            "first_start_with_cache_seconds": round(first[0], 2),
            "cached_seconds_median": round(statistics.median(cached), 4),
        }
    print(json.dumps(result, indent=2))
    print(how)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "identity.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
