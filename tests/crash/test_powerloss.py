"""Power loss after every call of a writer, by the model of powerloss.py: what ``durability`` says
is so, and no wrong byte is ever served."""

from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from kvshelf import FileStatus
from tests.crash.chunks import CHUNKS, load_all, store_the_rest
from tests.crash.powerloss import Disk, build, read_trace
from tests.crash.writer import NO_LINK, NO_RENAME2, Plan, Writers

MEND_EVERY = 25  # states: a new writer makes the shelf whole


def judge(tree: dict[str, bytes | None], root: Path, durability: str, stored: set[int]) -> Counter:
    """What a reader says of each chunk; raises if the setting promises more."""
    build(tree, root)
    published = {path for path in tree if path.endswith(".kv")}
    statuses = load_all(root)
    allowed = {FileStatus.OK, FileStatus.NOT_FOUND}
    if durability == "none":
        allowed.add(FileStatus.CORRUPT)
    assert set(statuses) <= allowed, statuses
    if durability != "none":
        assert statuses.count(FileStatus.OK) == len(published)
    if durability == "full":
        lost = {index for index in stored if statuses[index] is not FileStatus.OK}
        assert not lost, f"reported as stored, and lost: {lost}"
    return Counter(status.name for status in statuses)


@pytest.mark.slow
@pytest.mark.parametrize("faults", [0, NO_RENAME2, NO_RENAME2 | NO_LINK])
@pytest.mark.parametrize("durability", ["none", "data", "full"])
def test_a_power_loss_after_every_call(
    writers: Writers,
    folder: Path,
    durability: str,
    faults: int,
) -> None:
    plan = Plan(str(folder / "whole"), faults=faults, durability=durability)
    plan.trace = str(folder / "trace")
    assert writers.run(plan)["exit"] == 0
    rng = random.Random(3)
    disk = Disk()
    seen: set[int] = set()
    found: Counter[str] = Counter()
    for op in read_trace(Path(plan.trace)):
        disk.apply(op)
        stored = {int(mark.split()[1]) for mark in disk.marks}
        for tree in disk.states(rng):
            state = hash((frozenset(tree.items()), frozenset(stored)))
            if state in seen:
                continue
            seen.add(state)
            root = folder / "state"
            found += judge(tree, root, durability, stored)
            if len(seen) % MEND_EVERY == 0:
                store_the_rest(root)
            shutil.rmtree(root)
    sys.stdout.write(f"{durability}: {len(seen)} states, {dict(found)}\n")
    assert found["OK"] > CHUNKS
    # The model bites: what was not synced is lost under its name.
    assert (found["CORRUPT"] > 0) == (durability == "none")


def test_the_model_without_a_loss_is_the_directory(writers: Writers, tmp_path: Path) -> None:
    plan = Plan(str(tmp_path / "whole"), trace=str(tmp_path / "trace"))
    assert writers.run(plan)["exit"] == 0
    disk = Disk()
    for op in read_trace(Path(plan.trace)):
        disk.apply(op)
    root = Path(plan.root)
    there = {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }
    assert next(disk.states(random.Random(0))) == there
