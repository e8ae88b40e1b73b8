"""Scrubs beside processes that store, load, evict and damage the same chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.root import open_root
from kvshelf.scrub.findings import Kind
from tests.scrub.shelves import chunks, everything, found, scrubbed

REPOSITORY = Path(__file__).parents[2]
ROUNDS = 200


def start(root: Path, seed: int, damage: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "tests.scrub.racer", str(root), str(seed), str(ROUNDS), damage]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


@pytest.mark.parametrize("damage", ["no-damage", "damage"])
def test_scrubs_race_engines(tmp_path: Path, damage: str) -> None:
    shelf = open_root(tmp_path / "shelf")
    racers = [start(shelf, seed, damage) for seed in range(3)]
    line = [sys.executable, "-m", "kvshelf.cli", "scrub", str(shelf), "--from-start"]
    line += ["--megabytes-per-second", "0", "--files-per-second", "0"]
    kinds: set[str] = set()
    files = scrubs = 0
    while any(racer.poll() is None for racer in racers):
        # Two at a time: one here, one in a process of its own.
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as other:
            for _ in range(5):
                findings, run = scrubbed(shelf)
                kinds |= {str(finding.kind) for finding in findings}
                files += run.totals.files
                scrubs += 1
            assert other.communicate(timeout=60)[0]
        assert other.returncode in (0, 1)
    for racer in racers:
        right = int(racer.communicate(timeout=60)[0])
        assert racer.returncode == 0 and right > ROUNDS // 4
    assert files > scrubs  # there was something to race for
    # Healthy chunks that come and go are never found to be anything else.
    allowed = {Kind.CORRUPT, Kind.MISPLACED, Kind.UNSTEADY} if damage == "damage" else set()
    assert kinds <= {str(kind) for kind in allowed}
    scrubbed(shelf)
    before = everything(shelf)
    assert found(shelf) == [] and everything(shelf) == before
    assert all(path.stat().st_size == 16_384 for path in chunks(shelf))
