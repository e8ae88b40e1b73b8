"""The demo is a test: it compares every answer with an engine that has no kvshelf."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import engines
from damage import DAMAGES

STEPS = 3 + 1 + len(DAMAGES) + 2  # plain, A, A again; B; each kind of damage; healed, unreadable


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_every_answer_of_the_demo_is_that_of_an_engine_without_kvshelf() -> None:
    script = Path(engines.__file__).with_name("run.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    steps = [line for line in run.stdout.splitlines() if line.endswith("  ok")]
    assert len(steps) == STEPS, run.stdout
