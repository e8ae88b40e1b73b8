"""What eviction with default limits does to a shelf on each file system.

At 60% used it removes nothing; at 95% it goes down to the low mark, 85.5%, and no further.

    python benchmarks/bench_marks.py [--only NAME ...] [--out FILE]

Local file systems are made in loop devices; NFS runs in a guest; CephFS, JuiceFS and GlusterFS are
started by scripts (see tests/stress/mounts.py). Each is filled with chunks of 1 MiB to 60% of its
volume, and the evictor takes 3,600 steps: an hour of its rounds, without the waiting. Then it is
filled to 95%, and the evictor runs as it does in an engine until it has been idle for a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.stress.mounts import PLACES, Absent
from tests.upkeep.evict.shelves import ShelfMaker

from kvshelf.disk.volume import volume_of
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.report import State

CHUNK_BYTES = 1 << 20
STEPS = 3600
QUIET_SECONDS, MOST_SECONDS, SETTLE_SECONDS = 60.0, 400.0, 5.0
LIMITS = Limits(volume_percent=90.0, inode_percent=90.0)
LOW_PERCENT = 85.5
WHERE = ("ext4", "xfs", "btrfs", "nfs-v3", "nfs-v4.2", "cephfs", "juicefs", "gluster")


def used_percent(root: Path) -> float:
    while not (volume := volume_of(root)).counts_bytes:  # CephFS says 0 of 0 when it is young
        time.sleep(1)
    return 100 * volume.used_bytes / volume.total_bytes


def settled_percent(root: Path) -> float:
    """Where statvfs is late (CephFS: seconds), the number that stays."""
    fd = os.open(root, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(fd)
    os.close(fd)
    last = -1.0
    while (now := used_percent(root)) != last:
        last = now
        time.sleep(SETTLE_SECONDS)
    return now


def fill(maker: ShelfMaker, percent: float) -> None:
    """Half of what lacks at a time, by numbers that are no longer late: CephFS stops its writers
    for good when its pool is full."""
    age = 10_000_000.0 - len(maker.chunks)
    while True:
        lacking = percent - settled_percent(maker.root)
        count = int(lacking / 100 * volume_of(maker.root).total_bytes / CHUNK_BYTES)
        if count < 1:
            return
        for _ in range(1 if count < 4 else count // 2):
            age -= 1
            maker.add(age, size=CHUNK_BYTES, real=True)


def there(maker: ShelfMaker) -> int:
    return sum(chunk.path.exists() for chunk in maker.chunks)


def measure(root: Path) -> dict[str, Any]:
    maker = ShelfMaker(root / "shelf")
    fill(maker, 60)
    before = len(maker.chunks)
    found: dict[str, Any] = {"at 60%": {"used percent": round(settled_percent(root), 2)}}
    evictor = Evictor(maker.root, LIMITS)
    removed = sum(evictor.step(0.2).removed.files for _ in range(STEPS))
    found["at 60%"] |= {"steps": STEPS, "chunks": before, "removed": removed}
    assert there(maker) == before - removed
    fill(maker, 95)
    full = there(maker)
    found["at 95%"] = {"used percent": round(settled_percent(root), 2), "chunks": full}
    began = quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < QUIET_SECONDS:
        report = evictor.step(0.5)
        now = time.monotonic()
        if report.removed or report.state is not State.IDLE:
            quiet_since = now
        if now - began > MOST_SECONDS:
            break
        time.sleep(min(1.0, report.wait_seconds(1.0)))
    evictor.close()
    found["at 95%"] |= {
        "then used percent": round(settled_percent(root), 2),
        "removed": full - there(maker),
        "state": report.state.value,
        "oldest are gone": not any(
            chunk.path.exists() for chunk in maker.chunks[: full - there(maker)]
        ),
    }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", type=Path, nargs="+", help="measure in this directory, print JSON")
    parser.add_argument("--only", nargs="*", default=WHERE)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.at:
        print(json.dumps(measure(args.at[0])))
        return 0
    results: dict[str, Any] = {}
    for name in args.only:
        line = [sys.executable, str(Path(__file__).resolve()), "--at"]
        with tempfile.TemporaryDirectory(prefix="kvshelf-marks-") as folder:
            try:
                done = PLACES[name].run(line, Path(folder), MOST_SECONDS + 300)
                with contextlib.suppress(ValueError, IndexError):
                    results[name] = json.loads(done.stdout.strip().splitlines()[-1])
                if name not in results:
                    results[name] = {"failed": (done.stdout + done.stderr)[-600:]}
            except Absent as reason:
                results[name] = {"not here": str(reason)}
        print(name, json.dumps(results[name]), flush=True)
    if args.out:
        document = {
            "command": " ".join(["python", "benchmarks/bench_marks.py", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "low mark": LOW_PERCENT,
            "file systems": results,
        }
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    good = all(
        each["at 60%"]["removed"] == 0
        and abs(each["at 95%"]["then used percent"] - LOW_PERCENT) < 1
        for each in results.values()
        if "at 60%" in each
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
