"""The programs that the tests of ``deploy/`` run, and the folder itself."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
FETCHED = REPOSITORY / "build/deploy-tools/bin"


def _absent(what: str, hint: str) -> None:
    """Skip, but never in CI: there a missing tool would silently take its checks along."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing: {hint}")
    pytest.skip(f"no {what} here: {hint}")


def tool(name: str, *, optional: bool = False) -> Path:
    """The program; skips the test where there is none (fails in CI, unless ``optional``)."""
    if (FETCHED / name).is_file():
        return FETCHED / name
    if found := shutil.which(name):
        return Path(found)
    hint = "make build/deploy-tools/.done"
    if optional:
        pytest.skip(f"no {name} here: {hint}")
    _absent(name, hint)
    raise AssertionError


def module(name: str) -> Any:
    """A library of requirements/deploy.txt; skips where it is absent (fails in CI)."""
    try:
        return importlib.import_module(name)
    except ImportError:
        _absent(f"Python module {name}", "pip install -r requirements/deploy.txt")
        raise


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """A program's output as text; with ``check`` a failure fails the test with what it said."""
    done = subprocess.run(
        command,
        check=False,
        env=env,
        cwd=cwd,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done
