"""Scratch of ``bench`` and ``doctor``: a signal removes it, and after a kill the next run."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvshelf.bench.scratch import Scratch
from kvshelf.cli.main import main
from kvshelf.disk.layout import MARKER, TempOwner, temp_name
from kvshelf.disk.leftovers import remove_dead_scratch
from kvshelf.disk.proof import others_data
from kvshelf.disk.root import is_shelf, open_root
from kvshelf.disk.this_process import this_owner
from tests.upkeep.scrub.shelves import fill
from tests.upkeep.scrub.test_orphans import dead

__all__ = ["dead"]  # a fixture
pytestmark = pytest.mark.timeout(120)
BENCH = [sys.executable, "-m", "kvshelf.cli", "bench"]


def scratches(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.name.startswith(".")]


@contextmanager
def working(root: Path, *before: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A bench that has written some files."""
    # Whoever runs the tests under nohup hands an ignored SIGHUP on.
    line = [
        "env",
        "--default-signal=HUP",
        *before,
        *BENCH,
        str(root),
        "--rounds",
        "1000",
        "--size",
        "64MB",
        "--chunk-size",
        "2MB",
    ]
    bench = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        deadline = time.monotonic() + 60
        while sum(path.is_file() for path in root.rglob(".*/**/*")) < 5:
            assert time.monotonic() < deadline and bench.poll() is None
            time.sleep(0.01)
        yield bench
    finally:
        bench.kill()
        bench.communicate()


@pytest.fixture(params=["no shelf yet", "a shelf"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "root"
    if request.param == "a shelf":
        fill(path)
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_nothing(root: Path, number: int) -> None:
    with working(root) as bench:
        bench.send_signal(number)
        _, stderr = bench.communicate(timeout=60)
        assert (bench.returncode, stderr) == (130, "")
    assert scratches(root) == []


def test_under_nohup_a_hangup_ends_nothing(root: Path) -> None:
    with working(root, "nohup") as bench:
        bench.send_signal(signal.SIGHUP)
        bench.send_signal(signal.SIGSTOP)
        bench.send_signal(signal.SIGCONT)
        assert bench.poll() is None and len(scratches(root)) == 1


RUNS: dict[str, Callable[[Path], object]] = {
    "bench": lambda root: main(["bench", str(root), "--size", "2MB", "--chunk-size", "1MB"]),
    "doctor": lambda root: main(["doctor", str(root), "--quick"]),
    "an engine": fill,
    "scrub": lambda root: main(["scrub", str(root)]),
    "evict": lambda root: main(["evict", str(root), "--once"]),
}


@pytest.mark.parametrize("run", RUNS)
def test_what_a_kill_left_goes_at_the_next_run(root: Path, run: str) -> None:
    with working(root) as bench:
        bench.kill()
        bench.wait()
        [left] = scratches(root)
        assert others_data(root) is None or is_shelf(root)
        if run in ("scrub", "evict") and not is_shelf(root):
            RUNS[run](root)
            assert left.exists()  # no shelf: nothing is touched, and it is none of the data either
            open_root(root)
        RUNS[run](root)
        assert not left.exists() and scratches(root) == []


def test_a_second_ctrl_c_leaves_it_to_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvshelf.bench import scratch as module

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "remove_tree", interrupted)
        with pytest.raises(KeyboardInterrupt), Scratch(tmp_path) as scratch:
            (scratch.path / "data").write_bytes(bytes(5000))
            raise KeyboardInterrupt
    assert len(scratches(tmp_path)) == 1
    assert remove_dead_scratch(tmp_path) == 0  # this process lives
    assert others_data(tmp_path) is None


def put(root: Path, owner: TempOwner, marker: str = '{"kvshelf": 1}') -> Path:
    path = root / f".{temp_name(owner, 7)}"
    (path / "plain").mkdir(parents=True)
    (path / "plain" / "0").write_bytes(bytes(5000))
    if marker:
        (path / MARKER).write_text(marker)
    return path


def test_one_that_lives_or_may_stays(tmp_path: Path, dead: TempOwner) -> None:
    changes = ({"host": "elsewhere"}, {"boot": "0" * 8}, {"pids": 0}, {"pids": dead.pids + 1})
    kept = [put(tmp_path, this_owner())]
    kept += [put(tmp_path, dataclasses.replace(dead, **change)) for change in changes]
    gone = put(tmp_path, dead)
    assert remove_dead_scratch(tmp_path) == 1
    assert not gone.exists() and all(path.exists() for path in kept)


def test_one_of_a_stopped_process_stays(root: Path) -> None:
    with working(root) as bench:
        bench.send_signal(signal.SIGSTOP)
        assert remove_dead_scratch(root) == 0
        fill(root)
        assert len(scratches(root)) == 1


@pytest.mark.parametrize("marker", ["", '{"kvshelf": 99}', "{}", "x"])
def test_without_a_marker_in_it_it_is_somebodys(
    tmp_path: Path, dead: TempOwner, marker: str
) -> None:
    path = put(tmp_path, dead, marker)
    assert remove_dead_scratch(tmp_path) == 0
    assert (path / "plain" / "0").exists()


def test_an_empty_one_goes(tmp_path: Path, dead: TempOwner) -> None:
    """Of a process that was killed before it wrote the marker, or after it removed that."""
    (tmp_path / f".{temp_name(dead, 7)}").mkdir()
    assert remove_dead_scratch(tmp_path) == 1


def test_no_link_is_followed(tmp_path: Path, dead: TempOwner) -> None:
    canary = tmp_path / "canary"
    (canary / "data").mkdir(parents=True)
    (canary / MARKER).write_text('{"kvshelf": 1}')
    root = tmp_path / "root"
    path = put(root, dead)
    (path / "link").symlink_to(canary)
    (path / "plain" / "link").symlink_to(canary / "data")
    (root / f".{temp_name(dead, 8)}").symlink_to(canary)
    (root / f"{temp_name(dead, 9)}").mkdir()  # no dot in front: not ours
    assert remove_dead_scratch(root) == 1
    assert (canary / "data").is_dir() and (canary / MARKER).exists() and not path.exists()
    assert (root / temp_name(dead, 9)).is_dir()


@pytest.mark.slow
def test_junk_in_it_stays(tmp_path: Path, dead: TempOwner) -> None:
    path = put(tmp_path, dead)
    (path / "plain" / ".nfs0001").write_text("open elsewhere")
    (path / ".nfs0002").write_text("open elsewhere")
    remove_dead_scratch(tmp_path)
    assert not (path / "plain" / "0").exists()
    assert (path / "plain" / ".nfs0001").exists() and (path / ".nfs0002").exists()
    (path / "plain" / ".nfs0001").unlink()
    remove_dead_scratch(tmp_path)
    assert [each.name for each in path.iterdir()] == [".nfs0002"]
    (path / ".nfs0002").unlink()
    remove_dead_scratch(tmp_path)
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_is_mounted_there_stays(tmp_path: Path, dead: TempOwner) -> None:
    path = put(tmp_path, dead)
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=False).returncode:
        pytest.skip("no mounts here")
    try:
        (path / MARKER).write_text('{"kvshelf": 1}')
        (path / "data").write_text("precious")
        assert remove_dead_scratch(tmp_path) == 0
        assert (path / "data").exists()
    finally:
        subprocess.run(["umount", str(path)], check=True)
