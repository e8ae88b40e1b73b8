"""``kvshelf scrub``, in process and as users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvshelf.cli.main import main
from kvshelf.disk.layout import SCRUB_CURSOR
from tests.cli.usage import refused
from tests.harness.file_engine import flip
from tests.upkeep.scrub.shelves import chunks, everything, filled_shelf, shelf

__all__ = ["filled_shelf", "shelf"]
FAST = ["--max-bytes-per-second", "0", "--max-files-per-second", "0"]


def test_a_sound_shelf(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scrub", str(shelf), *FAST]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("8 chunks, 0.1 MB at ") and lines[0].endswith("end of the shelf")
    assert lines[1:] == ["findings: none"]


def test_findings_are_printed_and_are_the_status(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = chunks(shelf)[2]
    name = path.relative_to(shelf)
    flip(path, 5000)
    (shelf / "a\nb").touch()
    assert main(["scrub", str(shelf), "--dry-run", *FAST]) == 1 and path.exists()
    assert main(["scrub", str(shelf), *FAST]) == 1 and not path.exists()
    dry, real = capsys.readouterr().out.split("findings: 1 corrupt, 1 foreign\n")[:2]
    assert f"corrupt: would remove {name}: piece 0 of 2 is damaged\n" in dry
    assert f"corrupt: removed {name}: piece 0 of 2 is damaged\n" in real
    assert "foreign: kept a\\nb: not kvshelf's\n" in real


def test_json_lines(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = chunks(shelf)[2]
    flip(path, 5000)
    assert main(["scrub", str(shelf), "--json", *FAST]) == 1
    finding, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert finding["finding"]["path"] == str(path.relative_to(shelf))
    assert finding["finding"]["action"] == "removed"
    assert summary["summary"].pop("seconds") > 0
    assert summary["summary"] == {
        "files": 8,
        "bytes": 7 * 16_384 + 2 * 16_384,  # the damaged one twice
        "sealed": 0,
        "vanished": 0,
        "writing": 0,
        "finished": True,
        "findings": {"corrupt": 1},
        "removed": 1,
    }


@pytest.mark.parametrize("what", ["empty", "foreign", "absent", "file"])
def test_a_wrong_path_deletes_nothing(
    tmp_path: Path, what: str, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    if what == "file":
        target.write_text("mine")
    elif what != "absent":
        target.mkdir()
    if what == "foreign":  # all that a shelf has but its marker
        (shelf / "kvshelf.json").unlink()
        target = shelf
        os.truncate(chunks(shelf)[0], 5)
    before = everything(tmp_path)
    assert main(["scrub", str(target), *FAST]) == 10
    assert everything(tmp_path) == before and not (target / SCRUB_CURSOR).exists()
    assert str(target) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-bytes-per-second", "-1"], "'-1': allowed is a number of bytes"),
        (["--max-bytes-per-second", "99"], "'99': allowed is 0, or 100 bytes and more"),
        (["--temp-age", "59m"], "'59m': allowed is a duration from 1h to 3660d"),
        (["--unused-for", "nan"], "'nan': allowed is a duration from 0s to 3660d"),
        (["--every", "-2h"], "expected one argument"),
        (["--every=-2h"], "'-2h': allowed is a duration from 0s to 366d"),
        (["--every", "367d"], "'367d': allowed is a duration from 0s to 366d"),
        (["--max-files-per-second", "1e-300"], " 1e-300: 0, or 0.0001 or more"),
    ],
)
def test_bad_values_are_usage_errors(
    shelf: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["scrub", str(shelf), *arguments], capsys)
    assert message in said and arguments[0].partition("=")[0] in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_keeps_the_place(shelf: Path, number: signal.Signals) -> None:
    os.truncate(chunks(shelf)[0], 5)
    line = [
        sys.executable,
        "-m",
        "kvshelf.cli",
        "scrub",
        str(shelf),
        "--max-files-per-second",
        "0.5",
    ]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("corrupt:")
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped: the next scrub goes on there" in out and "findings: 1 corrupt" in out
    assert json.loads((shelf / SCRUB_CURSOR).read_text())["passes"] == 0


def test_as_a_daemon_it_begins_again(shelf: Path) -> None:
    line = [sys.executable, "-m", "kvshelf.cli", "scrub", str(shelf), *FAST, "--json"]
    line += ["--every", "360ms"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        flip(chunks(shelf)[2], 5000)
        deadline = time.monotonic() + 30
        while "finding" not in json.loads(process.stdout.readline()):
            assert time.monotonic() < deadline
        process.terminate()
        process.communicate(timeout=30)
    assert first["summary"]["files"] == 8 and len(chunks(shelf)) == 7
    assert process.returncode == 0


def test_a_daemon_waits_for_a_root_that_goes_away(shelf: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "kvshelf.cli", "scrub", str(shelf), *FAST, "--json"]
    line += ["--every", "360ms"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["summary"]["files"] == 8
        shelf.rename(tmp_path / "away")
        assert process.stderr.readline().endswith("trying again\n")
        (tmp_path / "away").rename(shelf)
        deadline = time.monotonic() + 30
        while json.loads(process.stdout.readline())["summary"]["files"] != 8:
            assert time.monotonic() < deadline
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_an_output_that_is_full_is_not_the_shelfs_fault(shelf: Path) -> None:
    line = [sys.executable, "-m", "kvshelf.cli", "scrub", str(shelf), *FAST]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr == "kvshelf: [Errno 28] No space left on device\n"


def test_a_dry_run_that_is_stopped_keeps_no_place(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dry-run", "--for", "0.00006"]
    assert main(["scrub", str(shelf), *options]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("MB/s, stopped")


def test_a_key_file_without_a_name_is_an_error(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scrub", str(shelf), "--auth-key-file="]) == 2
    assert "--auth-key-file" in capsys.readouterr().err


def test_a_closed_pipe_ends_it_quietly(shelf: Path) -> None:
    for number in range(200):
        (shelf / f"foreign-{number:200}").touch()
    line = f"{sys.executable} -m kvshelf.cli scrub {shelf} | head -1"
    done = subprocess.run(line, shell=True, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr
