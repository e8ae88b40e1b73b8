"""What ``import kvshelf`` gives, and what it must not bring along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kvshelf

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *options: str) -> str:
    line = [sys.executable, *options, "-c", code]
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout


def test_all_is_what_there_is() -> None:
    assert sorted(kvshelf.__all__) == kvshelf.__all__ and len(set(kvshelf.__all__)) == 17
    for name in kvshelf.__all__:
        assert getattr(kvshelf, name).__module__.startswith("kvshelf.") or name == "ChunkKey"


def test_a_star_import_gives_all() -> None:
    names = run("from kvshelf import *; print(*sorted(n for n in dir() if n[0] != '_'))").split()
    assert names == kvshelf.__all__


def test_every_public_thing_is_documented() -> None:
    for name in kvshelf.__all__:
        assert name == "ChunkKey" or getattr(kvshelf, name).__doc__


@pytest.mark.parametrize(
    "module",
    [
        "kvshelf",
        "kvshelf.cli.main",
        "kvshelf.cli.cmd_ls",
        "kvshelf.cli.cmd_evict",
        "kvshelf.cli.cmd_top",
        "kvshelf.upkeep.evict.duty",
    ],
)
def test_neither_vllm_nor_torch_is_imported(module: str) -> None:
    loaded = run(f"import sys, {module}; print(*sys.modules)").split()
    heavy = {"anycrc", "torch", "vllm", "transformers", "prometheus_client", "kvshelf.vllm"}
    assert module in loaded and not heavy & set(loaded)


def test_looking_at_shelves_needs_no_extension() -> None:
    loaded = run("import sys, kvshelf.cli.main; print(*sys.modules)").split()
    assert "kvshelf._native" not in loaded


def test_settings_and_errors_need_the_standard_library_only() -> None:
    """``config`` and ``errors`` themselves; their package imports NumPy."""
    foreign = ("import numpy", "from numpy", "from kvshelf.engine")
    package = ROOT / "src" / "kvshelf"
    for path in (*package.glob("config/*.py"), package / "errors.py", package / "metrics.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(line in text for line in foreign)


def test_the_library_needs_numpy_only() -> None:
    """What judges chunk files is the tests' own: ``tests/harness/codec.py``."""
    for path in (ROOT / "src" / "kvshelf").rglob("*.py"):
        assert "import anycrc" not in path.read_text(encoding="utf-8"), path


def test_the_package_is_typed() -> None:
    assert (Path(kvshelf.__file__).parent / "py.typed").exists()
