"""Two roots against one, on loop-mounted ext4 file systems: speed, moves, and one that is dead.

    python benchmarks/bench_roots.py [--chunks 48] [--rounds 5]

Every root is a file system of its own in an image file. The images lie on one disk and mostly in
the page cache, so this compares the work of engines, not of disks. One and two roots alternate in
every round; ratios are medians of the rounds'. Then a third root is added and the chunks that moved
are counted; then the second one's files go, as after an unmount, and all chunks are loaded.
Needs root, mkfs.ext4 and loop devices, and says why if they are not there.

Prints figures and writes benchmarks/results/roots.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench_engine import machine
from kvshelf import Chunk, FileStatus, Identity, Shelf, make_key
from kvshelf.disk.rendezvous import Rendezvous

CHUNK_BYTES, BLOCKS = 8 << 20, 16
IMAGE_BYTES = 1 << 30
IDENTITY = Identity({"model": "bench"})
HASHED_KEYS, HASHED_TIMES = 4096, 200


def why_not() -> str:
    """The reason why nothing can be mounted here, or ""."""
    if os.geteuid() != 0:
        return "mounting needs root"
    return "" if shutil.which("mkfs.ext4") else "mkfs.ext4 is not installed"


@contextmanager
def mounted(folder: Path, count: int) -> Iterator[list[Path]]:
    """Mounts of so many file systems, gone at the end.

    Raises:
        subprocess.CalledProcessError: there is no loop device, for one.
    """
    made: list[Path] = []
    try:
        for number in range(count):
            image, mount = folder / f"{number}.img", folder / f"disk{number}"
            mount.mkdir()
            with image.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            subprocess.run(["mkfs.ext4", "-qF", str(image)], check=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
            made.append(mount)
        yield made
    finally:
        for mount in made:
            subprocess.run(["umount", str(mount)], check=False)


class Bench:
    """Chunks in memory, and their keys, anew each round."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        rng = np.random.default_rng(1)
        shape = (2 * chunks * BLOCKS, CHUNK_BYTES // BLOCKS)
        self.memory = rng.integers(0, 256, shape, dtype=np.uint8)
        self.rounds = 0

    def keys(self) -> list[bytes]:
        self.rounds += 1
        seed = np.random.default_rng(self.rounds)
        return [make_key(seed.bytes(32), 0) for _ in range(self.chunks)]

    def parts(self, keys: list[bytes], half: int) -> list[Chunk]:
        starts = [(half * self.chunks + i) * BLOCKS for i in range(self.chunks)]
        return [Chunk(k, range(s, s + BLOCKS)) for k, s in zip(keys, starts, strict=True)]

    def once(self, roots: list[Path]) -> tuple[float, float]:
        """GB/s of a store and of a load into other memory, verified; the files are removed."""
        keys = self.keys()
        with Shelf.of_arrays(roots, IDENTITY, self.memory) as shelf:
            rates = []
            for call, half in ((shelf.store, 0), (shelf.load, 1)):
                start = time.perf_counter()
                statuses = call(self.parts(keys, half))
                rates.append(self.chunks * CHUNK_BYTES / (time.perf_counter() - start) / 1e9)
                assert set(statuses) == {FileStatus.OK}
            self.check(range(self.chunks))
            for root in roots:
                for path in (root / shelf.folder).rglob("*.kv"):
                    path.unlink()
        return rates[0], rates[1]

    def check(self, indices: range | list[int]) -> None:
        """The second half of memory is the first, for these chunks."""
        halves = self.memory.reshape(2, self.chunks, -1)
        for i in indices:
            assert (halves[0, i] == halves[1, i]).all()

    def grow_and_lose(self, roots: list[Path]) -> dict[str, object]:
        """A third root is added to two; then the second one's files go."""
        keys = self.keys()
        with Shelf.of_arrays(roots[:2], IDENTITY, self.memory) as shelf:
            assert set(shelf.store(self.parts(keys, 0))) == {FileStatus.OK}
            before = [shelf.root_of(key) for key in keys]
            with Shelf(roots, IDENTITY) as grown:
                found = grown.lookup(keys).count(FileStatus.OK)
                after = [grown.root_of(key) for key in keys]
            for path in (roots[1] / shelf.folder).rglob("*.kv"):
                path.unlink()
            self.memory[self.chunks * BLOCKS :] = 0
            start = time.perf_counter()
            statuses = shelf.load(self.parts(keys, 1))
            seconds = time.perf_counter() - start
        good = [i for i, status in enumerate(statuses) if status is FileStatus.OK]
        assert [i for i, root in enumerate(before) if root == 0] == good
        self.check(good)
        moved = [b for a, b in zip(before, after, strict=True) if a != b]
        return {
            "chunks": self.chunks,
            "moved by a third root": len(moved),
            "of those, to the third": moved.count(2),
            "still found with three roots": found,
            "loaded, all right, while the second root is empty": len(good),
            "seconds of that load": round(seconds, 3),
        }


def hashing() -> dict[str, float]:
    """Milliseconds for a batch of keys, and the share that another root takes."""
    keys = [make_key(os.urandom(32), 0) for _ in range(HASHED_KEYS)]
    figures = {}
    for count in (2, 4, 16):
        route, times = Rendezvous([f"/mnt/{i}" for i in range(count)]), []
        for _ in range(HASHED_TIMES):
            start = time.perf_counter()
            route.shares(keys, [HASHED_KEYS])
            times.append(1e3 * (time.perf_counter() - start))
        figures[f"{count} roots"] = round(statistics.median(times), 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/roots.json")
    args = parser.parse_args()
    if reason := why_not():
        sys.exit(f"skipped: {reason}")
    bench = Bench(args.chunks)
    one, two = [], []
    with tempfile.TemporaryDirectory(prefix="kvshelf-roots-") as folder:
        try:
            with mounted(Path(folder), 3) as disks:
                roots = [disk / "kv" for disk in disks]
                for _ in range(args.rounds + 1):
                    one.append(bench.once(roots[:1]))
                    two.append(bench.once(roots[:2]))
                changes = bench.grow_and_lose(roots)
        except subprocess.CalledProcessError as error:
            sys.exit(f"skipped: cannot mount here ({error})")
    one, two = one[1:], two[1:]  # the first round made folders
    result = {
        "command": " ".join(["python", "benchmarks/bench_roots.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "file_system": "ext4 in loop-mounted images on one disk, page cache",
        "GB/s, medians": {
            name: {
                "store": round(statistics.median(rate[0] for rate in rates), 2),
                "load": round(statistics.median(rate[1] for rate in rates), 2),
            }
            for name, rates in (("one root", one), ("two roots", two))
        },
        "two roots over one, median of ratios": {
            name: round(statistics.median(b[i] / a[i] for a, b in zip(one, two, strict=True)), 2)
            for i, name in enumerate(("store", "load"))
        },
        f"milliseconds to divide {HASHED_KEYS} keys": hashing(),
        "changes": changes,
    }
    print(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
