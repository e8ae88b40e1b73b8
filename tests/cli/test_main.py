"""What all commands have in common: their output, and a ROOT that can be none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.cli.main import main
from kvshelf.disk.root import open_root
from kvshelf.errors import ConfigError

COMMAND = [sys.executable, "-m", "kvshelf.cli"]
ON_SHELVES = ["ls", "diff", "top", "evict", "scrub", "bench", "doctor"]
VIEWS = (["ls"], ["ls", "--sizes"], ["ls", "--identities"])


@pytest.mark.parametrize("command", ON_SHELVES)
def test_an_empty_root_is_not_the_current_directory(
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    open_root(tmp_path / "shelf")
    monkeypatch.chdir(tmp_path / "shelf")
    assert main([command, "", *["a", "b"][: 2 * (command == "diff")]]) == 2
    assert capsys.readouterr().err == "kvshelf: ROOT is empty: is a variable not set?\n"


@pytest.mark.parametrize("command", ON_SHELVES)
def test_a_root_that_is_no_utf8_is_refused(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert main([command, path, *["a", "b"][: 2 * (command == "diff")]]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="UTF-8"):
        open_root(path)


@pytest.mark.parametrize("view", VIEWS)
def test_an_output_that_is_full(tmp_path: Path, view: list[str]) -> None:
    root = open_root(tmp_path / "shelf")
    line = [*COMMAND, *view, str(root), "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "kvshelf: [Errno 28] No space left on device\n"


def test_an_output_that_is_closed(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    line = f"exec {' '.join(COMMAND)} ls {root} --json >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_systems_own_folder_is_no_damaged_namespace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = open_root(tmp_path / "shelf")
    for name in ("lost+found", "evict", "doctor"):
        (root / name).mkdir(exist_ok=True)
        (root / name / "namespace.json").mkdir()  # as unreadable as another user's, for root too
    assert main(["ls", "--identities", str(root)]) == 0
    assert "finding" not in capsys.readouterr().out
