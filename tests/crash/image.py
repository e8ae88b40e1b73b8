"""Power loss for real: ext4 on a loop device whose image is copied while nothing was synced.

    unshare --mount python -m tests.crash.image FOLDER PRELOAD_LIBRARY [--kills 12]

A writer is killed; what it had not synced is only in the page cache of the mounted file system, and
the image holds what the device was sent. So a copy of the image is the disk after a power loss: it
is checked by e2fsck, mounted and read. Prints one line of JSON: {durability: {status: chunks}}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvshelf import FileStatus
from tests.crash.chunks import load_all, store_the_rest
from tests.crash.powerloss import read_trace
from tests.crash.writer import AFTER, Plan, Writers

IMAGE_BYTES = 32 << 20
COPY_ATTEMPTS = 50


def run(*command: str | Path, good: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in good, (command, done.stdout, done.stderr)
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, at)
    try:
        yield at
    finally:
        run("umount", at)


def copy_at_once(image: Path, device: str, copy: Path) -> None:
    """A copy during which the device was sent nothing: the disk at one moment."""
    statistics = Path("/sys/block", Path(device).name, "stat")
    for _ in range(COPY_ATTEMPTS):
        before = statistics.read_text().split()
        run("cp", "--sparse=always", image, copy)
        after = statistics.read_text().split()
        if before[4] == after[4] and before[8] == after[8] == "0":  # writes done, under way
            return
    raise AssertionError("the device is never quiet")


def lose_power(
    folder: Path, disk: Path, device: str, writers: Writers, plan: Plan, *, commit: bool
) -> Counter[str]:
    """Statuses of the chunks after a writer's death and a power loss."""
    answer = writers.run(plan)
    assert answer["exit"] in (0, -signal.SIGKILL)
    if commit:  # somebody else's fsync: the journal's names last, others' data need not
        with (disk / "other").open("w") as file:
            file.write("other")
            file.flush()
            os.fsync(file.fileno())
    copy_at_once(folder / "image", device, folder / "copy")
    run("e2fsck", "-fp", folder / "copy", good=(0, 1))
    marks = [op.words[1] for op in read_trace(Path(plan.trace)) if op.word == "mark"]
    with mounted(folder / "copy", folder / "after") as after:
        root = after / Path(plan.root).name
        published = len(list(root.glob("*/r0/*/*.kv")))
        statuses = load_all(root)
        if plan.durability == "full":
            assert all(statuses[int(mark)] is FileStatus.OK for mark in marks), (marks, statuses)
        if plan.durability != "none":
            assert FileStatus.CORRUPT not in statuses
            assert statuses.count(FileStatus.OK) == published
        store_the_rest(root)
    return Counter(status.name for status in statuses)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("library", type=Path)
    parser.add_argument("--kills", type=int, default=12)
    options = parser.parse_args()
    folder: Path = options.folder
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-qF", image)
    rng = random.Random(11)
    found: dict[str, Counter[str]] = {}
    writers = Writers(options.library)
    with mounted(image, folder / "disk") as disk:
        device = run("findmnt", "-n", "-o", "SOURCE", disk)
        for durability in ("none", "data", "full"):
            total = found[durability] = Counter()
            whole = writers.run(Plan(str(disk / f"{durability}-whole"), durability=durability))
            for number in range(options.kills):
                run("sync", "-f", disk)
                plan = Plan(str(disk / f"{durability}-{number}"), durability=durability)
                plan.trace = str(folder / "trace")
                # The last ones come to the end: power is lost just after.
                last = number >= options.kills * 2 // 3
                plan.kill_at = 0 if last else rng.randint(whole["calls"] // 3, whole["calls"])
                plan.when = AFTER
                total += lose_power(folder, disk, device, writers, plan, commit=number % 2 == 1)
    writers.close()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
