"""The oldest and the newest supported vLLM, from their wheels' Python files.

KVSHELF_VLLM_WHEELS names a directory with an unpacked wheel a version (<directory>/<version>/vllm).
Without it only the installed vLLM is checked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

CHECK = Path(__file__).with_name("window_check.py")


def run(path: str | None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ""}
    if path:
        env["PYTHONPATH"] = path
    return subprocess.run(
        [sys.executable, str(CHECK)],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_the_installed_vllm() -> None:
    done = run(None)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "fits vLLM" in done.stdout


@pytest.mark.parametrize("version", ["0.26.0", "0.33.0"])
def test_an_end_of_the_window(version: str) -> None:
    wheels = os.environ.get("KVSHELF_VLLM_WHEELS")
    if not wheels or not (Path(wheels) / version / "vllm").is_dir():
        pytest.skip("KVSHELF_VLLM_WHEELS has no unpacked wheel of this version")
    done = run(str(Path(wheels) / version))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"fits vLLM {version}" in done.stdout
