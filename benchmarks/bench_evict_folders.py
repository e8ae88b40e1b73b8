"""Eviction on a shelf of very many namespaces and ranks, with 1,024 descriptors.

    python benchmarks/bench_evict_folders.py [--directory DIR] [--folders 100000]

A shelf of FOLDERS rank folders, 8 a namespace, with one sparse chunk of 32 KiB each. ``kvshelf
evict`` runs under ``prlimit --nofile=1024``: as a daemon whose limit is not exceeded, for its first
look, its memory, its descriptors and its idle CPU; then with ``--once``, to remove a tenth. An
evictor in another process times later passes. Writes benchmarks/results/evict-folders.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench_engine import RESULTS, file_system, machine
from bench_evict import SIZE, Worker
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_root

RANKS = 8
DESCRIPTORS = 1024
IDLE_SECONDS = 60.0
TIMEOUT_SECONDS = 300.0


def make_shelf(root: Path, folders: int) -> None:
    open_root(root)
    now = time.time()
    for i in range(folders // RANKS):
        identity = Identity({"model": f"model-{i}"})
        (root / identity.folder / "tmp").mkdir(parents=True)
        document = json.dumps(identity.to_json())
        (root / identity.folder / "namespace.json").write_text(document)
        digits = hashlib.sha256(str(i).encode()).hexdigest()
        for rank in range(RANKS):
            leaf = f"{root}/{identity.folder}/r{rank}/{digits[:3]}"
            os.makedirs(leaf)  # noqa: PTH103 - 100,000 times
            descriptor = os.open(f"{leaf}/{digits}-g0.kv", os.O_WRONLY | os.O_CREAT, 0o640)
            os.ftruncate(descriptor, SIZE)
            os.utime(descriptor, (now - 1000 - i, now - 1000 - i))
            os.close(descriptor)
    os.sync()


class Watched:
    """A process and the most that it has had at once."""

    def __init__(self, *arguments: str) -> None:
        command = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", sys.executable, "-m"]
        command += ["kvshelf.cli", "evict", *arguments]
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(command, stdout=self.output, text=True)
        self.descriptors = 0
        self.rss_mb = 0.0

    def look(self) -> None:
        proc = Path(f"/proc/{self.process.pid}")
        try:
            self.descriptors = max(self.descriptors, len(os.listdir(proc / "fd")))  # noqa: PTH208
            status = (proc / "status").read_text()
        except OSError:
            return  # it has ended
        if "VmHWM:" in status:
            self.rss_mb = int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_for(self, what: Any) -> float:
        """Look until it is so; seconds."""
        begin = time.perf_counter()
        while not what():
            assert time.perf_counter() < begin + TIMEOUT_SECONDS, "it takes too long"
            assert self.process.poll() is None, f"it ended with {self.process.returncode}"
            self.look()
            time.sleep(0.02)
        return time.perf_counter() - begin


@contextmanager
def watched(*arguments: str) -> Iterator[Watched]:
    each = Watched(*arguments)
    try:
        yield each
    finally:
        each.process.terminate()
        each.process.wait(60)
        each.output.close()


def scrape(port: int) -> dict[str, float]:
    """Values of the page of metrics, series of one name added up."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError):
        return {}
    values: dict[str, float] = {"series": 0}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.split("{")[0].split(" ")[0], float(line.rpartition(" ")[2])
            values[name] = values.get(name, 0) + value
            values["series"] += 1
    return values


def measure(root: Path, folders: int, port: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    no_limit = ("--shelf-limit", "8PB", "--max-files-per-second", "0")
    with watched(str(root), *no_limit, "--metrics-port", str(port)) as daemon:

        def knows_all() -> bool:
            values = scrape(port)
            known = values.get("kvshelf:shelf_chunks") == folders
            return known and values.get("kvshelf:evict_state") == 0

        result["first_pass_seconds"] = round(daemon.wait_for(knows_all), 2)
        time.sleep(10)  # folders that have just changed are listed again
        before, begin = daemon.cpu_seconds(), time.perf_counter()
        end = begin + IDLE_SECONDS
        daemon.wait_for(lambda: time.perf_counter() > end)
        share = (daemon.cpu_seconds() - before) / (time.perf_counter() - begin)
        result["idle_cpu_percent"] = round(100 * share, 2)
        result["rss_mb"], result["descriptors"] = round(daemon.rss_mb, 1), daemon.descriptors
        result["metric_series"] = int(scrape(port)["series"])
    worker = Worker(root)
    empty = worker.do(bytes=1 << 60)
    again = worker.do(rescan=True)
    result["pass_seconds"] = round(again["seconds"], 2)
    result["refresh_seconds"] = round(worker.do(bytes=1 << 60)["seconds"], 2)
    result["evictor_rss_mb"] = round(empty["rss_mb"], 1)
    worker.end()
    keep = folders * 9 // 10 * SIZE
    limit = ("--shelf-limit", str(keep), "--low-water", "100", "--max-files-per-second", "0")
    with watched(str(root), *limit, "--once", "--json") as once:
        while once.process.poll() is None:
            once.look()
            time.sleep(0.02)
        once.output.seek(0)
        told = json.loads(once.output.read())
        result["once"] = {
            "exit_status": once.process.returncode,
            "state": told["state"],
            "removed": told["removed_files"],
            "seconds": told["seconds"],
            "rss_mb": round(once.rss_mb, 1),
            "descriptors": once.descriptors,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, default=None, help="default: a temp directory")
    parser.add_argument("--folders", type=int, default=100_000)
    parser.add_argument("--port", type=int, default=9377)
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvshelf-bench-") as name:
        root = Path(name) / "shelf"
        make_shelf(root, arguments.folders)
        row = measure(root, arguments.folders, arguments.port)
        kind = file_system(Path(name))
    result = {
        "command": " ".join(["python", "benchmarks/bench_evict_folders.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "file_system": kind,
        "rank_folders": arguments.folders,
        "namespaces": arguments.folders // RANKS,
        "descriptors_allowed": DESCRIPTORS,
        **row,
    }
    print(json.dumps(result, indent=2))
    if not arguments.no_save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "evict-folders.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
