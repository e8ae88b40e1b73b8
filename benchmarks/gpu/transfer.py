"""Loads and stores between GPU memory and chunk files, against the limits of the same machine.

One run, one card: every figure is a median over rounds in which the variants take turns, so that a
drift of the machine's speed hits all of them. KV is shaped like Llama-3.1-8B in bf16: 32 layers,
64 KiB a page of 16 tokens, 2 MiB a block, 33.6 MB a chunk of 256 tokens.

    python benchmarks/gpu/transfer.py DIR --out results.json

DIR lies on the file system to measure; the files stay in its page cache unless --cold is given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, make_key
from kvshelf.engine import CopyMethod, Direct, GroupMemory, Pages, Phase
from kvshelf.shelf import Shelf

GB = 1e9


@dataclass(frozen=True)
class Shape:
    """KV of one model: pages of one block, and blocks of one chunk."""

    layers: int = 32
    page_bytes: int = 65536
    blocks_per_chunk: int = 16

    @property
    def chunk_bytes(self) -> int:
        return self.layers * self.page_bytes * self.blocks_per_chunk


@dataclass
class Bench:
    directory: Path
    shape: Shape
    chunks: int
    threads: int
    rounds: int
    device: str = "cuda:0"
    copy_method: str = "auto"
    figures: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = 2 * self.chunks * self.shape.blocks_per_chunk
        self.tensors = [
            torch.empty((blocks, self.shape.page_bytes), dtype=torch.uint8, device=self.device)
            for _ in range(self.shape.layers)
        ]
        generator = torch.Generator(device=self.device).manual_seed(1)
        for tensor in self.tensors:
            tensor.random_(0, 256, generator=generator)
        self.total = self.chunks * self.shape.chunk_bytes
        order = np.random.default_rng(5).permutation(blocks).astype(np.int32)
        half = self.chunks * self.shape.blocks_per_chunk
        self.source, self.target = order[:half], order[half:]

    def shelf(self, name: str, config: EngineConfig) -> Shelf:
        memory = GroupMemory(
            tuple(Pages(t.data_ptr(), t.stride(0), self.shape.page_bytes) for t in self.tensors),
            self.tensors[0].shape[0],
        )
        return Shelf(
            self.directory,
            Identity({"model": name}),
            groups=[memory],
            config=config,
            device=self.device,
        )

    def chunk_list(self, ids: np.ndarray[Any, Any], count: int, salt: int = 0) -> list[Chunk]:
        per = self.shape.blocks_per_chunk
        return [
            Chunk(
                make_key((salt * 100_000 + i).to_bytes(32, "big"), 0), ids[i * per : (i + 1) * per]
            )
            for i in range(count)
        ]

    def note(self, name: str, seconds: float, total: int | None = None) -> None:
        self.figures.setdefault(name, []).append((total or self.total) / seconds / GB)


def rows(bench: Bench, ids: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(bench.device)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_job(shelf: Shelf, kind: str, chunks: Sequence[Chunk], job_id: int, phase: Phase) -> float:
    """Seconds from submission until the job reached ``phase``; fails unless every file is OK."""
    synchronize()
    start = time.perf_counter()
    getattr(shelf, f"submit_{kind}")(job_id, chunks)
    assert shelf.wait([job_id], phase, 120)
    seconds = time.perf_counter() - start
    shelf.wait([job_id], Phase.FINISHED, 120)
    for report in shelf.poll():
        assert all(status is FileStatus.OK for status in report.statuses), report
    return seconds


def plain(threads: int, work: Callable[[int], None], count: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: None, range(threads)))
        start = time.perf_counter()
        list(pool.map(work, range(count)))
        return time.perf_counter() - start


def pinned_copy(name: str) -> tuple[float, float]:
    """GB/s of one large copy each way, the limit of the bus."""
    pinned = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=name != "cpu")
    device = torch.empty(1 << 30, dtype=torch.uint8, device=name)
    out = []
    for target, source in ((device, pinned), (pinned, device)):
        synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        synchronize()
        out.append(pinned.numel() / (time.perf_counter() - start) / GB)
    return out[0], out[1]


def plain_io(bench: Bench) -> None:
    """Whole files of a chunk's size with read() and write(), as many threads."""
    folder = bench.directory / "plain"
    folder.mkdir(exist_ok=True)
    size = bench.shape.chunk_bytes
    # A buffer a file: one for all would be written from the processor's cache.
    buffers = [np.full(size, i % 251, dtype=np.uint8) for i in range(bench.chunks)]

    def write(i: int) -> None:
        fd = os.open(folder / f"w{i}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        assert os.write(fd, buffers[i]) == size
        os.close(fd)

    def read(i: int) -> None:
        fd = os.open(folder / f"w{i}", os.O_RDONLY)
        assert os.readv(fd, [buffers[i]]) == size
        os.close(fd)

    for i in range(bench.chunks):
        (folder / f"w{i}").unlink(missing_ok=True)
    bench.note("plain write()", plain(bench.threads, write, bench.chunks))
    bench.note("plain read()", plain(bench.threads, read, bench.chunks))
    for i in range(bench.chunks):
        (folder / f"w{i}").unlink()


def check_bytes(bench: Bench) -> None:
    for tensor in bench.tensors:
        source = tensor[rows(bench, bench.source)]
        target = tensor[rows(bench, bench.target)]
        assert torch.equal(source, target)


def measure(bench: Bench, one_request: int) -> dict[str, Any]:
    config = EngineConfig(
        io_threads=bench.threads,
        load_only_threads=0,
        write_buffer_bytes=512 << 20,
        store_queue_seconds=120,
        copy_method=CopyMethod(bench.copy_method),
    )
    verified = bench.shelf("m", config)
    unverified = bench.shelf("m", replace(config, verify=False))
    keyed = bench.shelf("m", replace(config, auth_key=b"k" * 32))  # in a folder of its own
    job = 0
    for round_number in range(bench.rounds + 1):
        if round_number == 1:
            bench.figures.clear()  # the first round warms up
        plain_io(bench)
        h2d, d2h = pinned_copy(bench.device)
        bench.figures.setdefault("pinned H2D", []).append(h2d)
        bench.figures.setdefault("pinned D2H", []).append(d2h)
        stored = bench.chunk_list(bench.source, bench.chunks, round_number)
        job += 1
        seconds = run_job(verified, "store", stored, job, Phase.FINISHED)
        bench.note("store, checksummed", seconds)
        wanted = bench.chunk_list(bench.target, bench.chunks, round_number)
        for tensor in bench.tensors:
            tensor[rows(bench, bench.target)] = 0
        for name, shelf in (("verified", verified), ("unverified", unverified)):
            job += 1
            bench.note(f"load, {name}", run_job(shelf, "load", wanted, job, Phase.FINISHED))
            if name == "verified":
                check_bytes(bench)
            job += 1
            one = wanted[:one_request]
            bench.note(
                f"load, one request of {one_request}, {name}",
                run_job(shelf, "load", one, job, Phase.FINISHED),
                one_request * bench.shape.chunk_bytes,
            )
        for chunk in stored:
            (bench.directory / verified.path_of(chunk.key)).unlink()
        authenticated(bench, keyed, job + 1, stored, wanted)
        job += 2
    stats = verified.stats()
    for shelf in (verified, unverified, keyed):
        shelf.close()
    return {"pinned_bytes_loads": 2 * bench.threads * config.piece_bytes, "stats": str(stats)}


def authenticated(
    bench: Bench, shelf: Shelf, job: int, stored: list[Chunk], wanted: list[Chunk]
) -> None:
    """The same with tags in place of checksums."""
    bench.note("store, authenticated", run_job(shelf, "store", stored, job, Phase.FINISHED))
    bench.note("load, authenticated", run_job(shelf, "load", wanted, job + 1, Phase.FINISHED))
    check_bytes(bench)
    for chunk in stored:
        (bench.directory / shelf.path_of(chunk.key)).unlink()


def cold(bench: Bench) -> None:
    """The disk itself: O_DIRECT loads against O_DIRECT reads, and cached growth during them."""
    stored = bench.chunk_list(bench.source, bench.chunks, 999)
    wanted = bench.chunk_list(bench.target, bench.chunks, 999)
    config = EngineConfig(io_threads=bench.threads, load_only_threads=0, direct=Direct.ON)
    shelf = bench.shelf("m", config)
    bench.note("store, O_DIRECT", run_job(shelf, "store", stored, 1, Phase.FINISHED))
    paths = [bench.directory / shelf.path_of(chunk.key) for chunk in stored]
    import mmap

    def read(i: int) -> None:
        buffer = mmap.mmap(-1, 4 << 20)
        fd = os.open(paths[i], os.O_RDONLY | os.O_DIRECT)
        while os.readv(fd, [buffer]) == len(buffer):
            pass
        os.close(fd)

    for round_number in range(2):
        bench.note("plain O_DIRECT read()", plain(bench.threads, read, len(paths)))
        before = cached_bytes()
        seconds = run_job(shelf, "load", wanted, 10 + round_number, Phase.FINISHED)
        bench.note("load, O_DIRECT, verified", seconds)
        bench.figures.setdefault("page cache growth in a direct load, GB", []).append(
            (cached_bytes() - before) / GB
        )
    check_bytes(bench)
    buffered = bench.shelf("m", replace(config, direct=Direct.OFF))
    for round_number in range(2):
        for path in paths:
            drop_cached(path)
        seconds = run_job(buffered, "load", wanted, 20 + round_number, Phase.FINISHED)
        bench.note("load, cold page cache, verified", seconds)
    for shelf_ in (shelf, buffered):
        shelf_.close()
    for path in paths:
        path.unlink()


def cached_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    return 0


def drop_cached(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def summary(figures: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 2) for name, values in figures.items()}


def ratios(m: dict[str, float], one: int) -> dict[str, float]:
    pairs = {
        "load verified / pinned H2D": ("load, verified", "pinned H2D"),
        "load verified / plain read()": ("load, verified", "plain read()"),
        "store checksummed / plain write()": ("store, checksummed", "plain write()"),
        "one request / all files": (f"load, one request of {one}, verified", "load, verified"),
        "verified / unverified": ("load, verified", "load, unverified"),
        "load authenticated / verified": ("load, authenticated", "load, verified"),
        "store authenticated / checksummed": ("store, authenticated", "store, checksummed"),
        "O_DIRECT load / O_DIRECT read()": ("load, O_DIRECT, verified", "plain O_DIRECT read()"),
        "cold load / O_DIRECT read()": (
            "load, cold page cache, verified",
            "plain O_DIRECT read()",
        ),
    }
    return {n: round(m[a] / m[b], 3) for n, (a, b) in pairs.items() if a in m and b in m}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--chunks", type=int, default=128)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-request", type=int, default=16)
    parser.add_argument("--page-bytes", type=int, default=65536)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--blocks-per-chunk", type=int, default=16)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--copy-method", default="auto")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    shape = Shape(args.layers, args.page_bytes, args.blocks_per_chunk)
    bench = Bench(
        args.directory.resolve(),
        shape,
        args.chunks,
        args.threads,
        args.rounds,
        args.device,
        args.copy_method,
    )
    facts = measure(bench, args.one_request)
    if args.cold:
        cold(bench)
    medians = summary(bench.figures)
    result = {
        "command": " ".join(["python", "benchmarks/gpu/transfer.py", *sys.argv[1:]]),
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "date": time.strftime("%Y-%m-%d"),
        "shape": vars(args) | {"directory": "DIR", "out": None},
        "GB/s, medians": medians,
        "ratios": ratios(medians, args.one_request),
        "samples": bench.figures,
        **facts,
    }
    for name, value in medians.items():
        print(f"{name:48s} {value:8.2f}")
    for name, value in result["ratios"].items():
        print(f"{name:48s} {value:8.3f}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
