"""Stores, loads and lookups by the native engine, and the same bytes by plain system calls.

Every figure of the engine stands beside one of the same mount, taken in turn in the same round:
what the mount can do changes by the minute, their ratio does not.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvshelf.disk.layout import chunk_path_in
from kvshelf.disk.owner import Users, make_folder
from kvshelf.engine import (
    Batch,
    BatchBuilder,
    Direct,
    EngineConfig,
    FileStatus,
    GroupMemory,
    JobResult,
    Pages,
    Phase,
)

Progress = Callable[[str], None]

OPERATIONS = ("store", "load", "cold-load", "lookup", "mixed")
_JOB_SECONDS_MAX = 300.0
_KEYS = 1000
_SINGLE_LOOKUPS = 50
_FOLDER = "bench/r0"


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured.

    Attributes:
        total_bytes: moved by one measurement, and held in memory and on the mount.
        chunk_bytes: of one chunk file; a multiple of 64 KiB.
        threads: numbers of I/O threads, each measured.
        piece_bytes: that one checksum covers.
        rounds: of each measurement; medians are reported.
        direct: whether payloads go by O_DIRECT.
    """

    total_bytes: int = 512 << 20
    chunk_bytes: int = 16 << 20
    threads: tuple[int, ...] = (1, 4, 12)
    piece_bytes: int = 4 << 20
    rounds: int = 3
    direct: Direct = Direct.OFF
    operations: tuple[str, ...] = OPERATIONS

    @property
    def files(self) -> int:
        return max(2, self.total_bytes // self.chunk_bytes)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: rates by kvshelf's engine and by plain system calls, medians.

    Attributes:
        operation: one of ``OPERATIONS``.
        unit: of the rates: "GB/s" or "keys/s".
        plain: the same by read(), write() or stat() in as many threads; None if it has no like.
        ratio: engine to plain, the median of the rounds' ratios.
        more: further figures by name, with their unit in it.
    """

    operation: str
    threads: int
    unit: str
    engine: float
    plain: float | None = None
    ratio: float | None = None
    more: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(folder: Path, workload: Workload, progress: Progress = lambda _: None) -> list[Row]:
    """Run the workload in an empty folder; may take minutes, leaves its files there.

    Raises:
        OSError: the mount failed, or took no store.
        MemoryError: the workload does not fit into memory.
    """
    rows = []
    site = _Site(folder, workload)
    for threads in workload.threads:
        with _Run(site, threads) as run:
            for operation in OPERATIONS:
                if operation in workload.operations or operation == "store":  # others need files
                    progress(f"{operation}, {threads} threads")
                    rows.append(run.measure(operation))
            run.clear()
    return [row for row in rows if row.operation in workload.operations]


class _Site:
    """Block memory, keys, and where files go."""

    def __init__(self, folder: Path, workload: Workload) -> None:
        self.folder, self.workload = folder, workload
        self.page_bytes = 64 << 10
        blocks_per_file = max(1, workload.chunk_bytes // self.page_bytes)
        self.file_bytes = blocks_per_file * self.page_bytes
        count = workload.files * blocks_per_file
        rng = np.random.default_rng(1)
        noise = rng.integers(0, 256, 1 << 20, dtype=np.uint8)  # incompressible, quick to make
        self.memory = np.resize(noise, (count, self.page_bytes))
        self.memory[:, :8] = np.arange(count, dtype=np.uint64).view(np.uint8).reshape(count, 8)
        self.ids = rng.permutation(count).astype(np.int32).reshape(workload.files, -1)
        self.group = GroupMemory(
            (Pages(self.memory.ctypes.data, self.page_bytes, self.page_bytes),), count
        )
        self.keys = [b"kvshelf bench %050d" % i for i in range(workload.files + _KEYS)]
        self.plain = folder / "plain"
        make_folder(self.plain, 0o770, Users.of(folder))

    def batch(self, first: int = 0, last: int | None = None) -> Batch:
        builder = BatchBuilder()
        for i in range(self.workload.files)[first:last]:
            builder.add(chunk_path_in(_FOLDER, self.keys[i]), self.keys[i], 0, 0, self.ids[i])
        return builder.build()

    def chunk_files(self) -> Iterator[Path]:
        for key in self.keys[: self.workload.files]:
            yield self.folder / chunk_path_in(_FOLDER, key)

    def plain_files(self) -> list[Path]:
        return [self.plain / str(i) for i in range(self.workload.files)]


class _Run:
    """One number of threads: an engine and a pool."""

    def __init__(self, site: _Site, threads: int) -> None:
        # Here, so that commands that measure nothing need no extension.
        from kvshelf.engine.native import NativeEngine  # noqa: PLC0415

        self.site, self.threads = site, threads
        workload = site.workload
        config = EngineConfig(
            io_threads=threads,
            load_only_threads=0,
            piece_bytes=workload.piece_bytes,
            write_behind=False,
            touch_interval_seconds=0,
            load_timeout_seconds=_JOB_SECONDS_MAX,
            load_stall_seconds=_JOB_SECONDS_MAX,
            store_timeout_seconds=_JOB_SECONDS_MAX,
            lookup_timeout_seconds=_JOB_SECONDS_MAX,
            direct=workload.direct,
        )
        self.engine = NativeEngine(site.folder, [site.group], config, namespace=b"b" * 32, rank=0)
        self.pool = ThreadPoolExecutor(threads)
        self.next_job = 0

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.pool.shutdown()

    def measure(self, operation: str) -> Row:
        if operation == "lookup":
            return self._lookup()
        if operation == "mixed":
            return self._mixed()
        gigabytes = self.site.workload.files * self.site.file_bytes / 1e9
        pairs = []
        for number in range(self.site.workload.rounds):
            sides = [self._engine_side, self._plain_side]
            took = {}
            # Whoever comes second may find the mount busy with what the first left.
            for side in sides if number % 2 == 0 else sides[::-1]:
                took[side] = side(operation)
            pairs.append((took[self._engine_side], took[self._plain_side]))
        return Row(
            operation,
            self.threads,
            "GB/s",
            engine=_figure(gigabytes / statistics.median(mine for mine, _ in pairs)),
            plain=_figure(gigabytes / statistics.median(plain for _, plain in pairs)),
            ratio=_figure(statistics.median(plain / mine for mine, plain in pairs)),
        )

    def _engine_side(self, operation: str) -> float:
        if operation == "store":
            _remove(self.site.chunk_files())
        elif operation == "cold-load":
            _forget(self.site.chunk_files())
        kind = "store" if operation == "store" else "load"
        started = time.perf_counter()
        self._finish(self._submit(kind, self.site.batch()))
        return time.perf_counter() - started

    def _plain_side(self, operation: str) -> float:
        paths = self.site.plain_files()
        if operation == "store":
            _remove(paths)
        elif operation == "cold-load":
            _forget(paths)
        work = self._write if operation == "store" else self._read
        started = time.perf_counter()
        list(self.pool.map(work, range(len(paths))))
        return time.perf_counter() - started

    def _part(self, i: int) -> memoryview:
        per_file = self.site.ids.shape[1]
        return self.site.memory[i * per_file : (i + 1) * per_file].reshape(-1).data

    def _write(self, i: int) -> None:
        with (self.site.plain / str(i)).open("wb", buffering=0) as file:
            rest = self._part(i)
            while rest:
                rest = rest[file.write(rest) :]

    def _read(self, i: int) -> None:
        with (self.site.plain / str(i)).open("rb", buffering=0) as file:
            rest = self._part(i)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise OSError(f"{file.name} is shorter than it was written")
                rest = rest[count:]

    def _lookup(self) -> Row:
        """Keys a second by the engine and by stat(); one at a time, in milliseconds."""
        known = [chunk_path_in(_FOLDER, key) for key in self.site.keys[: self.site.workload.files]]
        missing = [chunk_path_in(_FOLDER, key) for key in self.site.keys[len(known) :]]
        mine, plain = [], []
        for _ in range(self.site.workload.rounds):
            mine.append(self._timed_lookup(missing))
            started = time.perf_counter()
            list(self.pool.map(self._stat, missing, chunksize=32))
            plain.append(time.perf_counter() - started)
        some = (known * _SINGLE_LOOKUPS)[:_SINGLE_LOOKUPS]
        there = [self._timed_lookup([path]) for path in some]
        absent = [self._timed_lookup([path]) for path in missing[:_SINGLE_LOOKUPS]]
        return Row(
            "lookup",
            self.threads,
            "keys/s",
            engine=_figure(len(missing) / statistics.median(mine)),
            plain=_figure(len(missing) / statistics.median(plain)),
            ratio=_figure(statistics.median(b / a for a, b in zip(mine, plain, strict=True))),
            more={
                "hit_ms": _figure(1e3 * statistics.median(there)),
                "miss_ms": _figure(1e3 * statistics.median(absent)),
            },
        )

    def _stat(self, path: str) -> bool:
        return (self.site.folder / path).exists()

    def _timed_lookup(self, paths: list[str]) -> float:
        self.next_job += 1
        started = time.perf_counter()
        self.engine.submit_lookup(self.next_job, paths)
        self._finish(self.next_job)
        return time.perf_counter() - started

    def _mixed(self) -> Row:
        """Loads of one chunk while half of the chunks are stored: what both move, how long a load
        takes."""
        half = self.site.workload.files // 2
        latencies: list[float] = []
        moved, seconds = 0, 0.0
        for _ in range(self.site.workload.rounds):
            _remove(path for i, path in enumerate(self.site.chunk_files()) if i < half)
            started = time.perf_counter()
            store = self._submit("store", self.site.batch(0, half))
            for i in range(half, self.site.workload.files):
                begun = time.perf_counter()
                self._finish(self._submit("load", self.site.batch(i, i + 1)), also=store)
                latencies.append(time.perf_counter() - begun)
            self._finish(store)
            seconds += time.perf_counter() - started
            moved += self.site.workload.files * self.site.file_bytes
        return Row(
            "mixed",
            self.threads,
            "GB/s",
            engine=_figure(moved / seconds / 1e9),
            more={
                "load_p50_ms": _figure(1e3 * percentile(latencies, 50)),
                "load_p99_ms": _figure(1e3 * percentile(latencies, 99)),
            },
        )

    def _submit(self, kind: str, batch: Batch) -> int:
        self.next_job += 1
        submit = self.engine.submit_store if kind == "store" else self.engine.submit_load
        submit(self.next_job, batch)
        return self.next_job

    def _finish(self, job: int, also: int | None = None) -> None:
        """Wait for a job; reports of ``also`` may come in between.

        Raises:
            OSError: a file of a job was not moved.
        """
        if not self.engine.wait([job], Phase.FINISHED, _JOB_SECONDS_MAX + 1):
            raise OSError(f"the mount did not answer for {_JOB_SECONDS_MAX:.0f} s")
        for report in self.engine.poll():
            if report.job_id in (job, also):
                _check(report)

    def clear(self) -> None:
        _remove(self.site.chunk_files())
        _remove(self.site.plain_files())


def percentile(values: Sequence[float], percent: int) -> float:
    """By nearest rank: the least value that so many percent of all do not exceed."""
    rank = max(1, -(-percent * len(values) // 100))
    return sorted(values)[rank - 1]


def _check(report: JobResult) -> None:
    for status, number in zip(report.statuses, report.errnos, strict=True):
        if status not in (FileStatus.OK, FileStatus.NOT_FOUND):
            reason = os.strerror(number) if number else status.name.lower()
            raise OSError(number, f"a {report.kind.name.lower()} failed: {reason}")


def _remove(paths: Any) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _forget(paths: Any) -> None:
    """Write the files back and drop them from this machine's page cache (posix_fadvise(2))."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _figure(value: float) -> float:
    """Four digits: more would promise what nobody measured."""
    return float(f"{value:.4g}")
