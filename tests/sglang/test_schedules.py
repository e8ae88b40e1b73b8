"""Some seeds of schedules.py; benchmarks/bench_sglang_faults.py runs thousands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.faulty_calls import FaultyCalls, why_no_calls

REPOSITORY = Path(__file__).parents[2]
SEEDS = 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [0, 1_000_001])  # a page a chunk, and four
def test_no_wrong_byte_and_no_hang(tmp_path: Path, first: int) -> None:
    reason = why_no_calls()
    if reason:
        pytest.skip(reason)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    rules = FaultyCalls(tmp_path / "rules", shelf)
    command = [sys.executable, "-m", "tests.sglang.schedules"]
    done = subprocess.run(
        [*command, str(rules.file), str(shelf), str(first), str(SEEDS)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={
            **os.environ,
            **rules.environment(),
            "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], "demo"]),
        },
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == told["overwritten"] == 0
    assert told["longest_seconds"] < 10
    assert told["loaded"] > SEEDS  # it is not that nothing works
    assert told["damaged"] > SEEDS / 2
