"""Resets of running requests, clients that hang up, several engines and connectors in one process:
the answers of real engines (``stepped_engine``)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.engines import LOGPROB_TOLERANCE, engine_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("stepped_engine.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("guards")
    for name in ("shelf", "shelf-multi"):
        (folder / name).mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny_model), str(folder / "shelf")],
        env=engine_environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("TOLD ")]
    found: dict[str, Any] = json.loads(line.removeprefix("TOLD "))
    return found


@pytest.mark.parametrize("name", ["first", "multi", "from first", "from multi"])
def test_answers_are_those_of_an_engine_without_kvshelf(told: dict[str, Any], name: str) -> None:
    for (tokens, logprobs), (right, right_logprobs) in zip(told[name], told["truth"], strict=True):
        assert tokens == right
        differences = [abs(a - b) for a, b in zip(logprobs, right_logprobs, strict=True)]
        assert max(differences) <= LOGPROB_TOLERANCE
