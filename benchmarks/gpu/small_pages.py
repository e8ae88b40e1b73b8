"""Loads and stores of small pages: by DMA alone, and by our kernel; and what a model loses to them.

    python benchmarks/gpu/small_pages.py DIR [--threads 12] [--rounds 5] --out results.json

For each page size, chunks of about 32 MB in the page cache of DIR's file system; every load is
verified by the engine, and its bytes are compared once. Both ways take turns in each round. Beside
full-speed loads and stores, products of 4096 x 4096 bf16 matrices run on the GPU without a pause:
their rate, over the rate alone, is what a model keeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transfer import GB, Bench, Shape, check_bytes, pinned_copy, rows, run_job

from kvshelf import EngineConfig
from kvshelf.engine import CopyMethod, Phase
from kvshelf.shelf import Shelf

PAGES = (2048, 4096, 8192, 18_432, 65_536)
LAYERS = 32
CHUNK_BYTES = 32 << 20
BESIDE_SECONDS = 1.5
WAYS = ("batch", "auto")


def shape_of(page_bytes: int) -> Shape:
    return Shape(LAYERS, page_bytes, max(1, CHUNK_BYTES // (LAYERS * page_bytes)))


class Products:
    """Matrix products on a stream of their own, each 25 queued ones timed by events."""

    def __init__(self) -> None:
        self.a = torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda")
        self.b = torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda")
        self.stream = torch.cuda.Stream()

    def tflops(self, seconds: float) -> float:
        """Median rate over about so long."""
        rates = []
        end = time.perf_counter() + seconds
        with torch.cuda.stream(self.stream):
            while time.perf_counter() < end:
                first = torch.cuda.Event(enable_timing=True)
                last = torch.cuda.Event(enable_timing=True)
                first.record()
                for _ in range(25):
                    torch.matmul(self.a, self.b)
                last.record()
                last.synchronize()
                rates.append(25 * 2 * 4096**3 / first.elapsed_time(last) / 1e9)
        return statistics.median(rates)


def beside(products: Products, work: Any) -> tuple[float, float]:
    """Products' TFLOP/s while ``work`` repeats, and the repeats a second."""
    stop = threading.Event()
    times: list[float] = []

    def repeat() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)

    thread = threading.Thread(target=repeat)
    thread.start()
    time.sleep(0.2)
    rate = products.tflops(BESIDE_SECONDS)
    stop.set()
    thread.join()
    return rate, 1 / statistics.median(times)


def job(shelf: Shelf, kind: str, chunks: Any, number: list[int]) -> float:
    number[0] += 1
    return run_job(shelf, kind, chunks, number[0], Phase.FINISHED)


def quiet_job(shelf: Shelf, kind: str, chunks: Any, number: list[int]) -> None:
    """Without waiting for the whole GPU, as ``run_job`` does."""
    number[0] += 1
    getattr(shelf, f"submit_{kind}")(number[0], chunks)
    assert shelf.wait([number[0]], Phase.FINISHED, 60)
    shelf.poll()


def measure(directory: Path, page_bytes: int, args: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(directory, shape_of(page_bytes), args.chunks, args.threads, args.rounds)
    config = {
        way: EngineConfig(
            io_threads=args.threads,
            load_only_threads=0,
            write_buffer_bytes=512 << 20,
            store_queue_seconds=120,
            copy_method=CopyMethod(way),
        )
        for way in WAYS
    }
    shelves = {way: bench.shelf(f"m{page_bytes}", config[way]) for way in WAYS}
    products = Products()
    number = [0]
    found: dict[str, Any] = {}
    for round_number in range(args.rounds + 1):
        if round_number == 1:
            bench.figures.clear()  # the first round warms up
        for way, shelf in shelves.items():
            stored = bench.chunk_list(bench.source, bench.chunks, round_number)
            wanted = bench.chunk_list(bench.target, bench.chunks, round_number)
            bench.note(f"store {way}", job(shelf, "store", stored, number))
            for tensor in bench.tensors:
                tensor[rows(bench, bench.target)] = 0
            bench.note(f"load {way}", job(shelf, "load", wanted, number))
            check_bytes(bench)
            if round_number == args.rounds:
                alone = products.tflops(0.5)
                with_loads, loads = beside(
                    products, lambda s=shelf, w=wanted: quiet_job(s, "load", w, number)
                )
                found[f"product beside loads {way}"] = round(with_loads / alone, 3)
                found[f"load {way} beside products"] = round(loads * bench.total / GB, 2)
            for chunk in stored:
                (bench.directory / shelf.path_of(chunk.key)).unlink()
            if round_number == args.rounds:

                def store_anew(shelf: Shelf = shelf) -> None:
                    chunks = bench.chunk_list(bench.source, 16, 10_000 + number[0])
                    quiet_job(shelf, "store", chunks, number)
                    for chunk in chunks:
                        (bench.directory / shelf.path_of(chunk.key)).unlink()

                with_stores, _ = beside(products, store_anew)
                found[f"product beside stores {way}"] = round(with_stores / alone, 3)
    for shelf in shelves.values():
        shelf.close()
    medians = {name: round(statistics.median(v), 2) for name, v in bench.figures.items()}
    return {"GB/s": medians, **found, "samples": bench.figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--pages", type=int, nargs="*", default=PAGES)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    pages: dict[int, Any] = {}
    for page_bytes in args.pages:
        found = pages[page_bytes] = measure(args.directory.resolve(), page_bytes, args)
        shown = {name: value for name, value in found.items() if name != "samples"}
        print(page_bytes, json.dumps(shown), flush=True)
        torch.cuda.empty_cache()
    large = pages[max(pages)]["GB/s"]
    result = {
        "command": " ".join(["python", "benchmarks/gpu/small_pages.py", *sys.argv[1:]]),
        "card": torch.cuda.get_device_name(),
        "date": time.strftime("%Y-%m-%d"),
        "pinned H2D, D2H, GB/s": [round(rate, 1) for rate in pinned_copy("cuda:0")],
        "pages": pages,
        "rate / rate of the largest pages": {
            size: {
                kind: round(found["GB/s"][f"{kind} auto"] / large[f"{kind} auto"], 3)
                for kind in ("load", "store")
            }
            for size, found in pages.items()
        },
    }
    print(json.dumps(result["rate / rate of the largest pages"]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
