"""``kvshelf evict`` as a user runs it."""

from __future__ import annotations

import argparse
import errno
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvshelf.cli.main import main
from kvshelf.cli.units import duration, size, whole
from kvshelf.disk import root as root_module
from kvshelf.disk.documents import read_json
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker

COMMAND = [sys.executable, "-m", "kvshelf.cli", "evict"]


@dataclass
class Done:
    stdout: str
    stderr: str


@pytest.fixture
def evict(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command within this process: starting another takes a second."""

    def run(*arguments: object, status: int = 0) -> Done:
        try:
            returned = main(["evict", *map(str, arguments)])
        except SystemExit as error:  # argparse's
            returned = int(error.code or 0)
        done = Done(*capsys.readouterr())
        assert returned == status, (returned, done)
        return done

    return run


Evict = Callable[..., Done]


def shelf_of(tmp_path: Path, chunks: int) -> ShelfMaker:
    shelf = ShelfMaker(tmp_path)
    for i in range(chunks):
        shelf.add(1000 + i)
    return shelf


def test_once(evict: Evict, tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, 100)
    options = ("--once", "--shelf-limit", 80 * CHUNK_BYTES, "--low-water", 75)
    done = evict(tmp_path, *options)
    assert shelf.gone() == shelf.oldest(40)
    assert done.stdout.startswith("removed 40 chunks, 0.000 GB, unused for 10")
    result = json.loads(evict(tmp_path, *options, "--json").stdout)
    assert result["removed_files"] == 0 and result["exceeded"] == []
    assert result["namespaces"] == {shelf.folders[0]: {"files": 60, "bytes": 60 * CHUNK_BYTES}}


def test_dry_run(evict: Evict, tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, 50)
    done = evict(tmp_path, "--dry-run", "--shelf-limit", CHUNK_BYTES * 20, "--low-water", 100)
    assert "would remove 30 chunks" in done.stdout and not shelf.gone()


def test_a_limit_that_cannot_be_met_is_a_finding(evict: Evict, tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, 5)
    # Others use this file system beyond 1 percent; the shelf is below its floor.
    done = evict(tmp_path, "--once", "--volume-percent", 1, "--json", status=1)
    assert json.loads(done.stdout)["exceeded"][0]["limit"] == "volume_percent"
    assert "nothing more may go" in done.stderr and not shelf.gone()


@pytest.mark.parametrize("kind", ["absent", "empty", "data", "file"])
def test_a_wrong_path_loses_nothing(evict: Evict, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there"
    if kind == "file":
        path.write_text("data")
    elif kind != "absent":
        shelf_of(path, 3)
        (path / "kvshelf.json").unlink()
        if kind == "empty":
            path = tmp_path / "there" / "tmp"
            path.mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = evict(path, "--once", "--shelf-limit", 1, status=10)
    assert done.stderr.startswith("kvshelf: ") and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "wrong",
    [
        ["--shelf-limit", "much"],
        ["--shelf-limit", "0"],
        ["--shelf-limit", "9" * 400],
        ["--volume-percent", "101"],
        ["--low-water", "nan"],
        ["--max-files-per-second", "-1"],
        ["--max-files-per-second", "nan"],
        ["--threads", "0"],
        ["--every", "0"],
        ["--every", "inf"],
        ["--namespace-limit", "a="],
        ["--namespace-limit", "a=0"],
        ["--namespace-limit", "=5"],
        ["--metrics-port", "70000"],
    ],
)
def test_wrong_usage_names_the_option_and_the_value(
    evict: Evict, tmp_path: Path, wrong: list[str]
) -> None:
    shelf = shelf_of(tmp_path, 1)
    done = evict(tmp_path, "--once", *wrong, status=2)
    assert "Traceback" not in done.stderr and not shelf.gone()
    error = done.stderr.splitlines()[-1]
    assert wrong[0] in error and wrong[1].rpartition("=")[2] in error


def test_a_name_that_no_namespace_has_is_told(evict: Evict, tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path, "big")
    done = evict(tmp_path, "--once", "--namespace-limit", "bug=5GB")
    assert "--namespace-limit bug: no namespace here begins so" in done.stderr
    assert (
        evict(tmp_path, "--once", "--namespace-limit", f"{shelf.folders[0][:2]}=5GB").stderr == ""
    )


def test_what_may_not_be_read_is_told(
    evict: Evict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = shelf_of(tmp_path, 10)
    closed = ShelfMaker(tmp_path, "closed").folders[0]

    def refuse(path: Path, *more: Any) -> Any:
        if str(path).startswith(str(tmp_path / closed)):  # root may read everything
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_json(path, *more)

    monkeypatch.setattr(root_module, "read_json", refuse)
    done = evict(tmp_path, "--once", "--shelf-limit", 5 * CHUNK_BYTES, status=1)
    assert f"may not be read, so it does not count and stays: {closed}" in done.stderr
    assert "not kvshelf's" not in done.stderr and len(shelf.gone()) == 6
    result = evict(tmp_path, "--once", "--json", status=1)
    assert json.loads(result.stdout)["unread"] == [closed]


def test_a_daemon_goes_on_when_its_log_cannot_be_written(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, 20)
    line = [*COMMAND, str(tmp_path), "--shelf-limit", str(10 * CHUNK_BYTES), "--every", "0.05"]
    with Path("/dev/full").open("w") as full:
        daemon = subprocess.Popen(line, stdout=full, stderr=full)
    try:
        deadline = time.monotonic() + 60
        for more in (0, 5):
            for i in range(more):
                shelf.add(i)
            while len(list(tmp_path.rglob("*.kv"))) > 10:
                assert daemon.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        assert daemon.poll() is None
    finally:
        daemon.terminate()
        daemon.wait(20)


def test_once_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    shelf_of(tmp_path, 1)
    line = [*COMMAND, str(tmp_path), "--once"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")


def test_sizes() -> None:
    assert [size(text) for text in ("0", "12", "5kB", "1.5 GB", "2GiB", "3KiB", "1T")] == [
        0,
        12,
        5000,
        1_500_000_000,
        2 << 30,
        3 << 10,
        10**12,
    ]
    for wrong in ("", "GB", "1XB", "-1", "1e9", "1gb"):
        with pytest.raises(argparse.ArgumentTypeError, match="number of bytes"):
            size(wrong)


def test_durations() -> None:
    parse = duration("0s", "366d")
    found = [parse(text) for text in ("0", "1.5", "500ms", "30s", "10 m", "6h", "7d")]
    assert found == [0, 1.5, 0.5, 30, 600, 21_600, 604_800]
    for wrong in ("", "s", "-1", "1e3", "1w", "nan", "inf", "367d", "1h30m"):
        with pytest.raises(argparse.ArgumentTypeError, match="a duration from 0s to 366d"):
            parse(wrong)


@pytest.mark.parametrize("text", ["0", "65", "1.5", "-1", "\u0661", ""])
def test_whole_numbers(text: str) -> None:
    assert whole(1, 64)("64") == 64
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number from 1 to 64"):
        whole(1, 64)(text)


def test_limits_of_namespaces(evict: Evict, tmp_path: Path) -> None:
    shelf = ShelfMaker(tmp_path, "big", "small")
    for i in range(60):
        shelf.add(1000 + i, name_space=i % 2)
    limits = ("--namespace-limit", f"big={20 * CHUNK_BYTES}", "--namespace-limit", "1GB")
    result = json.loads(evict(tmp_path, "--once", "--json", *limits).stdout)
    assert result["namespaces"][shelf.folders[0]]["files"] == 19  # 95 percent of 20
    assert result["namespaces"][shelf.folders[1]]["files"] == 30


class Daemon:
    def __init__(self, *arguments: object) -> None:
        line = [*COMMAND, *map(str, arguments)]
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self, number: int) -> tuple[int, float, str]:
        begin = time.monotonic()
        self.process.send_signal(number)
        try:
            _, stderr = self.process.communicate(timeout=20)
        finally:
            self.process.kill()
        return self.process.returncode, time.monotonic() - begin, stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_acts_and_ends_when_told(tmp_path: Path, number: int) -> None:
    shelf = shelf_of(tmp_path, 100)
    daemon = Daemon(
        tmp_path, "--json", "--shelf-limit", 100 * CHUNK_BYTES, "--low-water", 90, "--every", 0.1
    )
    try:
        for i in range(10):
            shelf.add(i, rank=1)
        stdout = daemon.process.stdout
        assert stdout is not None
        first = json.loads(stdout.readline())
        assert first["removed_files"] == 20 and first["state"] == "idle"
        assert shelf.gone() == shelf.oldest(20)
    finally:
        status, seconds, stderr = daemon.end(number)
    assert (status, stderr) == (0, "") and seconds < 5


def test_the_daemon_waits_for_a_root_that_goes_away(tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    shelf = shelf_of(root, 20)
    daemon = Daemon(root, "--shelf-limit", 10 * CHUNK_BYTES, "--every", 0.05)
    try:
        stdout, stderr = daemon.process.stdout, daemon.process.stderr
        assert stdout is not None and stderr is not None
        assert "removed 11 chunks" in stdout.readline()  # it is at work
        root.rename(tmp_path / "away")
        assert "trying again" in stderr.readline()
    finally:
        status, _, _ = daemon.end(signal.SIGTERM)
    assert status == 0
    assert len(list((tmp_path / "away").rglob("*.kv"))) == 9 < len(shelf.chunks)


def test_metrics_and_health(tmp_path: Path) -> None:
    from kvshelf.upkeep.evict.evictor import Evictor
    from kvshelf.upkeep.evict.exposition import Exposition, serve
    from kvshelf.upkeep.evict.limits import Limits

    shelf = shelf_of(tmp_path, 30)
    exposition = Exposition()
    server = serve(exposition, 0)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        evictor = Evictor(tmp_path, Limits(shelf_bytes=20 * CHUNK_BYTES, low_percent=50))
        for _ in range(20):
            exposition.add(evictor.step())
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert "kvshelf:evicted_chunks_total 20.0\n" in text
        assert f"kvshelf:evicted_bytes_total {20.0 * CHUNK_BYTES}\n" in text
        assert f'kvshelf:shelf_chunks{{namespace="{shelf.folders[0]}"}} 10.0\n' in text
        assert 'kvshelf:evict_state{root=""} 0.0\n' in text
        with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
            assert answer.status == 200
        exposition._last_step -= 100
        for path, status in (("healthz", 503), ("else", 404)):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(f"{url}/{path}", timeout=10)
            assert error.value.code == status
    finally:
        server.shutdown()
