"""The demo is a test: it compares every answer with an engine that has no kvshelf."""

from __future__ import annotations

import subprocess
import sys

import pytest
from demo.damage import DAMAGES

from tests.harness.engines import REPOSITORY

STEPS = 3 + 1 + len(DAMAGES) + 2  # plain, A, A again; B; each kind of damage; healed, unreadable


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_every_answer_of_the_demo_is_that_of_an_engine_without_kvshelf() -> None:
    script = REPOSITORY / "demo/run.py"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    steps = [line for line in run.stdout.splitlines() if line.endswith("  ok")]
    assert len(steps) == STEPS, run.stdout
