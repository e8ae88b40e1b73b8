"""A writer is killed at every call that touches the shelf, and at random times.

KVSHELF_TEST_KILLS (100): how many die at random; with -m stress it is a thousand.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from kvshelf import FileStatus
from kvshelf.disk.layout import owner_is_dead, parse_temp_name, temp_name
from kvshelf.disk.namespace import Identity
from kvshelf.disk.this_process import start_ticks_of, this_owner
from tests.crash.chunks import CHUNKS, IDENTITY, load_all, store_the_rest
from tests.crash.powerloss import read_trace
from tests.crash.writer import AFTER, BEFORE, NO_LINK, NO_RENAME2, TORN, Plan, Writers

KILLS = int(os.environ.get("KVSHELF_TEST_KILLS", "100"))

pytestmark = pytest.mark.timeout(900)


def temp_files(root: Path) -> list[Path]:
    """In the root and in the namespace's folder for them; also those of JSON files, with a dot."""
    return sorted([*root.glob("*.tmp"), *root.glob("*/tmp/*.tmp")])


def check_names(root: Path, pid: int) -> None:
    """What a dead writer has left: whole JSON files or none, and temp files that say whose."""
    marker = root / "kvshelf.json"
    if marker.exists():
        assert json.loads(marker.read_text()) == {"kvshelf": 1}
    for path in root.glob("*/namespace.json"):
        assert Identity.from_json(json.loads(path.read_text())).digest == IDENTITY.digest
    here = this_owner()
    live = parse_temp_name(temp_name(here, 1))
    assert live is not None
    assert owner_is_dead(live, here=here, start_ticks_of=start_ticks_of) is False
    for path in temp_files(root):
        owner = parse_temp_name(path.name.removeprefix("."))
        assert owner is not None and owner.pid == pid
        assert owner_is_dead(owner, here=here, start_ticks_of=start_ticks_of) is True


def survive(root: Path, pid: int) -> list[FileStatus]:
    """Every chunk is there and right, or not there; a new writer makes the shelf whole and leaves
    others' temp files alone."""
    check_names(root, pid)
    left = temp_files(root)
    statuses = load_all(root)
    assert set(statuses) <= {FileStatus.OK, FileStatus.NOT_FOUND}, statuses
    store_the_rest(root)
    assert temp_files(root) == left
    check_names(root, pid)
    return statuses


# With "full" there are the most calls. Where renameat2 or link are not known, only they differ.
@pytest.mark.parametrize(
    ("faults", "durability"),
    [(0, "full"), (NO_RENAME2, "data"), (NO_RENAME2 | NO_LINK, "data")],
    ids=["rename", "link", "neither"],
)
def test_killed_at_every_call(writers: Writers, folder: Path, faults: int, durability: str) -> None:
    whole = Plan(str(folder / "whole"), faults=faults, durability=durability)
    whole.trace = str(folder / "trace")
    calls = writers.run(whole)["calls"]
    assert load_all(Path(whole.root)) == [FileStatus.OK] * CHUNKS
    assert temp_files(Path(whole.root)) == []
    writes = [op.call for op in read_trace(Path(whole.trace)) if op.word == "write"]
    kills = [(at, when) for at in range(1, calls + 1) for when in (BEFORE, AFTER)]
    if faults:  # before one call is after the one before
        kills = [(at, when) for at, when in kills if when == AFTER]
    found: Counter[int] = Counter()
    orphans = unreached = 0
    for kill_at, when in [*kills, *((at, TORN) for at in writes)]:
        root = folder / f"{kill_at}-{when}"
        plan = Plan(str(root), kill_at, when, faults, durability=durability)
        answer = writers.run(plan)
        if answer["exit"] == 0 and answer["calls"] < kill_at:
            unreached += 1  # threads end in their own order: now and then with a call fewer
            shutil.rmtree(root)
            continue
        assert answer["exit"] == -signal.SIGKILL, (kill_at, when)
        orphans += len(temp_files(root))
        statuses = survive(root, answer["pid"])
        # They were stored in turn.
        there = statuses.count(FileStatus.OK)
        assert statuses == [FileStatus.OK] * there + [FileStatus.NOT_FOUND] * (CHUNKS - there)
        found[there] += 1
        shutil.rmtree(root)
    sys.stdout.write(f"{found.total()} kills; chunks found: {dict(found)}; {orphans} temp files\n")
    assert set(found) == set(range(CHUNKS + 1)) and orphans > calls / 4
    assert unreached <= 6


def killed_at_random(writers: Writers, folder: Path, kills: int) -> None:
    """At a call or after a time, with many threads: each time the calls come in another order."""
    rng = random.Random(7)
    found: Counter[int] = Counter()
    calls, seconds = 100, 0.05
    for number in itertools.count():
        root = folder / str(number)
        plan = Plan(
            str(root),
            durability=rng.choice(["none", "data", "full"]),
            faults=rng.choice([0, 0, NO_RENAME2, NO_RENAME2 | NO_LINK]),
            write_behind=rng.random() < 0.7,
            direct=rng.choice(["off", "auto"]),
            ordered=False,
            one_by_one=rng.random() < 0.3,
        )
        if number % 4 == 0:
            plan.seconds = rng.uniform(0.0, 1.5 * seconds)
        else:
            plan.kill_at = rng.randint(1, calls)
            plan.when = rng.choice([BEFORE, AFTER, TORN])
        start = time.monotonic()
        answer = writers.run(plan)
        if answer["exit"] == -signal.SIGKILL:
            found[survive(root, answer["pid"]).count(FileStatus.OK)] += 1
        else:  # it came to its end before; now it is known when that is
            assert answer["exit"] == 0
            calls, seconds = answer["calls"], time.monotonic() - start
        shutil.rmtree(root, ignore_errors=True)
        if found.total() == kills:
            break
    sys.stdout.write(f"{kills} kills at random; chunks found: {dict(found)}\n")
    assert 0 < found[0] < kills


def test_killed_at_random(writers: Writers, folder: Path) -> None:
    killed_at_random(writers, folder, KILLS)


@pytest.mark.stress
def test_killed_at_random_a_thousand_times(writers: Writers, folder: Path) -> None:
    killed_at_random(writers, folder, max(KILLS, 1000))
