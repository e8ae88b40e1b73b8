"""SGLang's host memory to files and back: kvshelf, SGLang's `file` backend, and plain reads.

    make bench-sglang                    (or: python benchmarks/bench_sglang.py --gb 4 --dir DIR)

Pages are a model's of 8B parameters: 16 tokens, 2 MiB, layer_first (64 runs of 32 KiB). Backups and
prefetches go through SGLang's own HiCacheController. Everything is in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "demo")]

import numpy as np  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import HiCacheFile  # noqa: E402
from tests.sglang.rig import (  # noqa: E402
    arguments,
    back_up,
    backend_of,
    config_of,
    controller_of,
    hashes,
    make_model,
    make_pool,
    prefetch,
)

REPEATS = 3


def best(action: Any, repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(repeats):
        begun = time.monotonic()
        action()
        seconds.append(time.monotonic() - begun)
    return min(seconds)


def transfer(controller: Any, pages: int, keys: list[str]) -> tuple[Any, Any]:
    """(store, load) of all pages, by SGLang's controller."""
    places = list(range(pages))
    return (
        lambda: check(back_up(controller, keys, places), pages),
        lambda: check(prefetch(controller, keys, places), pages),
    )


def check(moved: int, pages: int) -> None:
    if moved != pages:
        raise RuntimeError(f"{moved} of {pages} pages moved")


def plain_reads(files: list[Path], threads: int) -> float:
    """Seconds to read the files into memory of their size, each to its own place."""
    size = files[0].stat().st_size
    memory = memoryview(np.ones(size * len(files), dtype=np.uint8))

    def read(part: range) -> None:
        for i in part:
            descriptor = os.open(files[i], os.O_RDONLY)
            assert os.readv(descriptor, [memory[i * size : (i + 1) * size]]) == size
            os.close(descriptor)

    parts = [range(i, len(files), threads) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return best(lambda: list(pool.map(read, parts)))


def kvshelf(work: Path, pool: Any, pages: int, threads: int) -> dict[str, float]:
    shelf = work / "shelf"
    extra = {"threads_per_gpu": threads, "evict": False}
    with backend_of(
        shelf, pool, arguments(make_model(work / "m")), config_of(shelf, extra=extra)
    ) as backend:
        controller = controller_of(pool, backend)
        keys = hashes(pages)
        store, load = transfer(controller, pages, keys)
        told = {"store_seconds": best(store, 1), "load_seconds": best(load)}
        asked = [keys[i : i + 128] for i in range(0, pages, 128)]
        told["lookup_4096_ms"] = (
            best(lambda: [backend.batch_exists(each) for each in asked]) * 1e3 * 4096 / pages
        )
        told["plain_read_seconds"] = plain_reads(sorted(shelf.rglob("*.kv")), threads)
    shutil.rmtree(shelf)
    return told


def sglang_file(work: Path, pool: Any, pages: int) -> dict[str, float]:
    folder = work / "file"
    config = config_of(folder)
    config.extra_config = {"file_storage_path": str(folder)}
    backend = HiCacheFile(config)
    controller = controller_of(pool, backend)
    controller.page_get_func = controller._generic_page_get
    controller.page_set_func = controller._generic_page_set
    keys = hashes(pages)
    store, load = transfer(controller, pages, keys)
    told = {"store_seconds": best(store, 1), "load_seconds": best(load)}
    asked = [keys[i : i + 128] for i in range(0, pages, 128)]
    told["lookup_4096_ms"] = (
        best(lambda: [backend.batch_exists(each) for each in asked]) * 1e3 * 4096 / pages
    )
    shutil.rmtree(folder)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pages = int(given.gb * 1e9) // (2 << 20) // 128 * 128
    # float32 with half of the heads: as many bytes as 16 bits with all.
    pool = make_pool(pages=pages, layers=32, heads=4, head_dim=128)
    gigabytes = pages * (2 << 20) / 1e9
    told: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "gigabytes": round(gigabytes, 3),
        "pages": pages,
    }
    with tempfile.TemporaryDirectory(dir=given.dir) as name:
        work = Path(name)
        for threads in (2, 4):
            told[f"kvshelf_{threads}_threads"] = kvshelf(work, pool, pages, threads)
        told["file"] = sglang_file(work, pool, pages)
    for values in told.values():
        if isinstance(values, dict):
            for key in [key for key in values if key.endswith("_seconds")]:
                values[key.replace("_seconds", "_gb_per_second")] = round(
                    gigabytes / values[key], 3
                )
    print(json.dumps(told, indent=1))
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
