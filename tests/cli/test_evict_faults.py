"""``kvshelf evict`` on storage that fails or hangs: it says so, tries again, and obeys signals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvshelf.cli import cmd_evict
from kvshelf.cli.common import Exit
from kvshelf.cli.main import main
from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict import turn
from kvshelf.upkeep.evict.evictor import Evictor
from kvshelf.upkeep.evict.exposition import Exposition
from tests.upkeep.evict.shelves import CHUNK_BYTES, ShelfMaker

LIMIT = ("--shelf-limit", str(10 * CHUNK_BYTES))
Step = Callable[..., object]


@pytest.fixture
def shelf(tmp_path: Path) -> ShelfMaker:
    shelf = ShelfMaker(tmp_path)
    for i in range(20):
        shelf.add(1000 + i)
    return shelf


def run(root: Path, *arguments: str) -> int:
    return main(["evict", str(root), *LIMIT, *arguments])


def steps_that(first: Callable[[Evictor], object]) -> tuple[list[int], Step]:
    """``Evictor.step`` in which the first does something else, and a count of all."""
    real, count = Evictor.step, [0]

    def step(self: Evictor, *arguments: float) -> object:
        count[0] += 1
        if count[0] == 1:
            return first(self)
        return real(self, *arguments)

    return count, step


def fail(error: Exception) -> Callable[[Evictor], object]:
    def first(_: Evictor) -> object:
        raise error

    return first


def test_once_ends_with_the_fault(
    shelf: ShelfMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, step = steps_that(fail(OSError(errno.EIO, "storage")))
    monkeypatch.setattr(Evictor, "step", step)
    assert run(tmp_path, "--once") == Exit.NO_SHELF
    assert "storage" in capsys.readouterr().err and not shelf.gone()


def test_an_error_of_its_own_is_told_and_not_waited_for(
    shelf: ShelfMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, step = steps_that(fail(ValueError("a mistake")))
    monkeypatch.setattr(Evictor, "step", step)
    assert run(tmp_path) == Exit.FINDINGS
    assert "ValueError: a mistake" in capsys.readouterr().err and not shelf.gone()


@pytest.mark.slow
def test_a_daemon_tries_again_with_a_new_evictor(
    shelf: ShelfMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    count, step = steps_that(fail(OSError(errno.ESTALE, "stale")))
    made: list[Evictor] = []
    begin = Evictor.__init__

    def init(self: Evictor, *arguments: object, **options: object) -> None:
        made.append(self)
        begin(self, *arguments, **options)  # type: ignore[arg-type]

    def take(self: cmd_evict._Command, report: object) -> bool:
        done = real_take(self, report)  # type: ignore[arg-type]
        if done:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    real_take = cmd_evict._Command._take
    monkeypatch.setattr(Evictor, "step", step)
    monkeypatch.setattr(Evictor, "__init__", init)
    monkeypatch.setattr(cmd_evict._Command, "_take", take)
    monkeypatch.setattr(turn, "STAND_BACK_SECONDS", 0.01)
    assert run(tmp_path) == 0
    assert "stale; trying again" in capsys.readouterr().err
    assert len(made) == 2 and count[0] > 1 and len(shelf.gone()) >= 10


@pytest.mark.slow
def test_a_daemon_whose_storage_hangs_ends_when_told(shelf: ShelfMaker, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from kvshelf.cli.main import main\n"
        "from kvshelf.upkeep.evict.evictor import Evictor\n"
        "def hang(self, *_):\n"
        "    print('hangs', flush=True)\n"
        "    time.sleep(1000)\n"
        "Evictor.step = hang\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "evict", str(tmp_path), *LIMIT]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hangs\n"
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (130, "kvshelf: the storage hangs: ended without it\n")
    assert not shelf.gone()


def test_what_could_not_be_removed_and_what_is_not_ours_is_told(
    shelf: ShelfMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / shelf.folders[0] / "notes\n").write_text("somebody's")
    real = Evictor.step

    def step(self: Evictor, *arguments: float) -> object:
        report = real(self, *arguments)
        return cmd_evict.replace(report, faults={errno.EACCES: 3})

    monkeypatch.setattr(Evictor, "step", step)
    assert run(tmp_path, "--once") == Exit.FINDINGS
    done = capsys.readouterr()
    reason = os.strerror(errno.EACCES)
    assert f"3 files or folders could not be looked at or removed: {reason}\n" in done.err
    assert "kept 1 entries that are not kvshelf's: " in done.err
    assert "notes\n" not in done.err and r"notes\n" in done.err  # a name may not forge a line
    assert "removed 1" in done.out


def test_a_port_that_cannot_be_had_is_wrong_usage(
    shelf: ShelfMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--metrics-port", "70000") == Exit.USAGE
    assert "--metrics-port 70000" in capsys.readouterr().err and not shelf.gone()


def test_faults_are_counted_by_their_name_and_waiting_is_healthy() -> None:
    from kvshelf.upkeep.evict.report import Report, State

    exposition = Exposition()
    volume = Volume(total_bytes=1, used_bytes=1, total_inodes=0, used_inodes=0)
    for _ in range(2):
        exposition.add(Report(State.IDLE, volume, faults={errno.EIO: 3, 9999: 1}))
    text = exposition.text()
    assert 'kvshelf:evict_faults_total{errno="EIO"} 6.0\n' in text
    assert 'kvshelf:evict_faults_total{errno="9999"} 2.0\n' in text
    exposition._last_step -= 100
    assert exposition.health()
    exposition.waits()  # it is another's turn
    assert not exposition.health()
