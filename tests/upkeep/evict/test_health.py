"""/healthz and the metrics when the lease cannot be taken or the root cannot be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kvshelf.disk.layout import EVICT_FOLDER
from kvshelf.disk.root import open_root
from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict import exposition as exposition_module
from kvshelf.upkeep.evict.exposition import Exposition
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.mends import mend_of
from kvshelf.upkeep.evict.report import Report, State
from tests.harness.quirk_mount import quirk_mount
from tests.upkeep.evict.shelves import ShelfMaker
from tests.upkeep.evict.test_duty import Heard, duties

IDLE = Report(State.IDLE, Volume(1, 2))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(exposition_module.time, "monotonic", lambda: now[0])
    return now


def test_a_lease_that_cannot_be_used_for_a_minute_is_unhealthy(clock: list[float]) -> None:
    exposition = Exposition()
    error = OSError(errno.EROFS, "Read-only file system")
    for _ in range(62):
        exposition.fault(error)
        exposition.waits(f"the lease cannot be used: {error}")
        clock[0] += 1
        assert (not exposition.health()) == (clock[0] < 1060)
    assert "Read-only" in exposition.health()
    assert 'kvshelf:evict_faults_total{errno="EROFS"} 62.0\n' in exposition.text()
    exposition.waits()  # another holds it
    assert not exposition.health()


def test_a_root_that_cannot_be_written_is_unhealthy(clock: list[float]) -> None:
    exposition = Exposition()
    refused = Report(State.STUCK, Volume(1, 2), faults={errno.EROFS: 9})
    for _ in range(62):
        exposition.add(refused)
        clock[0] += 1
    assert "cannot be written" in exposition.health()
    exposition.add(IDLE)
    assert not exposition.health()


def test_chunks_that_cannot_go_are_no_reason_to_start_anew(clock: list[float]) -> None:
    """Immutable files, a sticky folder: another process would not do better."""
    exposition = Exposition()
    for _ in range(100):
        exposition.add(Report(State.STUCK, Volume(1, 2), faults={errno.EPERM: 9}))
        clock[0] += 1
        assert not exposition.health()


def test_steps_that_fail_are_unhealthy_with_their_reason(clock: list[float]) -> None:
    exposition = Exposition()
    exposition.add(IDLE)
    for _ in range(70):
        exposition.fault(OSError(errno.ESTALE, "Stale file handle"))
        clock[0] += 1
    assert "Stale file handle" in exposition.health()
    exposition = Exposition()
    clock[0] += 61
    assert exposition.health() == "the storage does not answer"


def test_a_volume_that_counts_nothing_has_no_sample(clock: list[float]) -> None:
    exposition = Exposition()
    exposition.add(Report(State.IDLE, Volume(0, 0, bytes_unknown="0 of 0")))
    assert "\nkvshelf:volume_total_bytes{" not in exposition.text()
    exposition.add(IDLE)
    assert '\nkvshelf:volume_total_bytes{root=""} 2' in exposition.text()


@pytest.mark.parametrize(
    "number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOSPC, errno.ESTALE]
)
def test_usual_faults_have_a_mend(number: int, tmp_path: Path) -> None:
    assert mend_of(OSError(number, os.strerror(number)), tmp_path)
    assert not mend_of(ValueError("what"), tmp_path)


def test_an_engine_counts_it_and_says_what_to_do(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    (root / EVICT_FOLDER).write_text("somebody's file")
    with duties(root, limits=Limits(shelf_bytes=1)) as (duty,):
        news = Heard(duty).until(lambda news: bool(news.faults))
    assert news.faults[0].part == "lease" and news.faults[0].errno == "ENOTDIR"
    assert "move away" in news.faults[0].text


def test_an_engine_is_told_of_a_limit_that_nobody_can_keep(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree"), 0)
    with quirk_mount(tmp_path, statvfs=nothing) as mount:
        root = open_root(mount.path / "shelf")
        with duties(root, limits=Limits(volume_percent=90, inode_percent=90)) as (duty,):
            [(cause, text)] = Heard(duty).until(lambda news: bool(news.notes)).notes
        assert cause == "limits" and "evict_percent" in text and "0 of 0" in text
        assert "evict_shelf_gb" in text


def test_the_command_on_a_root_that_became_read_only(tmp_path: Path) -> None:
    """One line with the mend, a fault counted, and /healthz says why after a minute."""
    with quirk_mount(tmp_path) as mount:
        ShelfMaker(mount.path)
        refused = dict.fromkeys(("rename", "create", "mkdir", "unlink", "write"), "EROFS")
        mount.set(errors=refused)
        script = (
            "import sys\n"
            "from kvshelf.upkeep.evict import exposition\n"
            "exposition.HEALTHY_SECONDS = 1.0\n"
            "from kvshelf.cli.main import main\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        port = free_port()
        line = [sys.executable, "-c", script, "evict", str(mount.path), "--every", "0.1"]
        line += ["--lease", "1.5", "--metrics-port", str(port)]
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as daemon:
            try:
                until(lambda: answer(port, "/healthz")[0] == 503)
                assert "the lease cannot be used" in answer(port, "/healthz")[1]
                assert 'kvshelf:evict_faults_total{errno="EROFS"}' in answer(port, "/metrics")[1]
                mount.set()
                until(lambda: answer(port, "/healthz") == (200, "ok\n"))
            finally:
                daemon.terminate()
                _, err = daemon.communicate(timeout=30)
    assert err.count("lease: ") == 1 and "mount it read-write" in err


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def until(is_so: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
