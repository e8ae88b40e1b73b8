"""Scrubs beside processes that store, load, evict and damage the same chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.disk.root import open_root
from kvshelf.upkeep.scrub.findings import Kind
from tests.upkeep.scrub.shelves import chunks, everything, found, scrubbed

REPOSITORY = Path(__file__).parents[3]
ROUNDS = 200  # of each racer, at least
# Scrubs of the whole shelf: in each turn so many here, and one in a process of its own.
TURNS, SCRUBS = 5, 8


def start(root: Path, seed: int, damage: str) -> subprocess.Popen[str]:
    line = [
        sys.executable,
        "-m",
        "tests.upkeep.scrub.racer",
        str(root),
        str(seed),
        str(ROUNDS),
        damage,
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY)


def say_racing(racer: subprocess.Popen[str]) -> bool:
    assert racer.stdout is not None
    return racer.stdout.readline() == "racing\n"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["no-damage", "damage"])
def test_scrubs_race_engines(tmp_path: Path, damage: str) -> None:
    shelf = open_root(tmp_path / "shelf")
    racers = [start(shelf, seed, damage) for seed in range(3)]
    assert all(say_racing(racer) for racer in racers)
    line = [sys.executable, "-m", "kvshelf.cli", "scrub", str(shelf), "--from-start"]
    line += ["--max-bytes-per-second", "0", "--max-files-per-second", "0"]
    kinds: set[str] = set()
    files = 0
    for _ in range(TURNS):
        # Two at a time: one here, one in a process of its own.
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as other:
            for _ in range(SCRUBS):
                findings, run = scrubbed(shelf)
                kinds |= {str(finding.kind) for finding in findings}
                files += run.totals.files
            assert other.communicate(timeout=60)[0]
        assert other.returncode in (0, 1)
    assert all(racer.poll() is None for racer in racers)  # they raced to the end
    for racer in racers:
        right, rounds = map(int, racer.communicate(timeout=60)[0].split())
        assert racer.returncode == 0 and right > rounds // 4 >= ROUNDS // 4
    assert files > TURNS * SCRUBS  # there was something to race for
    # Healthy chunks that come and go are never found to be anything else.
    allowed = {Kind.CORRUPT, Kind.MISPLACED, Kind.UNSTEADY} if damage == "damage" else set()
    assert kinds <= {str(kind) for kind in allowed}
    scrubbed(shelf)
    before = everything(shelf)
    assert found(shelf) == [] and everything(shelf) == before
    assert all(path.stat().st_size == 16_384 for path in chunks(shelf))
