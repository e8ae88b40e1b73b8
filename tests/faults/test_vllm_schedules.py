"""A real vLLM engine under random faults of its system calls, which change every few requests.

``python benchmarks/bench_schedules.py engine`` does the same for as long as one likes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from tests.harness.faulty_calls import why_no_calls

from .engine_schedules import EngineRun, too_many_lines

REASON = why_no_calls()
SECONDS = 30.0


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_answers_are_right_whatever_fails(tmp_path: Path) -> None:
    run = EngineRun(tmp_path, seed=0)
    figures = run.go(SECONDS)
    assert run.wrong == []
    assert run.verdicts["wrong"] == 0
    assert run.verdicts["right"] > run.verdicts["tie"]
    assert run.faults.total() > 10, figures
    assert run.from_shelf > 0, figures
    assert run.log_lines, figures


def test_a_cause_that_is_logged_too_often_is_noticed() -> None:
    line = "(Worker pid=7) WARNING 11-24 10:00:10 [worker.py:244] kvshelf: {}: chunk 01 of group 0"
    load, store = line.format("load failed (io_error)"), line.format("store failed (io_error)")
    assert too_many_lines(f"{load}\n{store}", 59.0) == []
    assert too_many_lines(f"{load}\n{load}\n{store}", 59.0) == ["load failed (io_error): 2 lines"]
    assert too_many_lines(f"{load}\n{load}\n{store}", 61.0) == []
