"""A test that takes long without the mark fails the run; a loaded machine does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import longest_first
from tests.harness.quirk_mount import REPOSITORY
from tests.harness.slow import own_seconds

TESTS = """
import time, pytest
def test_quick(): pass
def test_of_another_clock(monkeypatch): monkeypatch.setattr(time, "monotonic", lambda: 1e12)
@pytest.mark.slow
def test_marked(): time.sleep(0.4)
@pytest.mark.parametrize("seconds", [0.0, 0.7])
def test_unmarked(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-n", "2"]])
def test_what_takes_long_must_have_the_mark(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "test_them.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    line = [sys.executable, "-m", "pytest", "-p", "tests.harness.slow", str(tmp_path), *options]

    def run(limit: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            [*line, "--slow-seconds", limit],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        said = [each for each in done.stdout.splitlines() if each.startswith("SLOW ")]
        return done.returncode, said

    status, said = run("0.6")
    assert status == 1 and len(said) == 1 and "test_unmarked[0.7]" in said[0], said
    assert run("60") == (0, [])


def test_files_with_long_tests_come_first() -> None:
    class Item:
        def __init__(self, name: str, *marks: str) -> None:
            self.path, self.name, self.marks = Path(name[0]), name, marks

        def iter_markers(self, mark: str) -> list[str]:
            return [each for each in self.marks if each == mark]

    items = [Item("a1"), Item("b1", "slow"), Item("b2"), Item("c1"), Item("c2", "e2e", "slow")]
    longest_first(items)  # type: ignore[arg-type]
    assert [item.name for item in items] == ["c1", "c2", "b1", "b2", "a1"]


def test_a_loaded_machine_makes_no_test_slow() -> None:
    assert own_seconds(wall=8.0, processor=0.5, waited=0.1) == pytest.approx(7.9)  # it waits
    assert own_seconds(wall=8.0, processor=0.5, waited=8.0) == 0.5  # others work
    assert own_seconds(wall=8.0, processor=7.5, waited=8.0) == 7.5  # it works
    assert own_seconds(wall=8.0, processor=14.0, waited=0.0) == 8.0  # on two processors
    assert own_seconds(wall=8.0, processor=0.5, waited=None) == 0.5
