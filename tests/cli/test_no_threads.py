"""Where the system gives no thread or no memory, each command says so in one line and ends."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf import Chunk, ConfigError, EngineConfig, FileStatus, Identity, Shelf, make_key
from kvshelf.cli.main import main
from kvshelf.disk.root import open_root
from kvshelf.engine import native
from kvshelf.errors import ResourceError
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.limits import Limits
from tests.upkeep.evict.shelves import ShelfMaker

pytestmark = pytest.mark.timeout(180)
USER = 40077
# The interpreter may lie where only root may look.
KEEPS = "-all,+dac_read_search"
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
AS_USER += [f"--{each}-caps={KEEPS}" for each in ("inh", "ambient")] + [f"--bounding-set={KEEPS}"]
ROOT = Path(__file__).parents[2]
COMMANDS = {
    "ls": ["ls"],
    "sizes": ["ls", "--sizes"],
    "top": ["top", "--once"],
    "identities": ["ls", "--identities"],
    "evict --once": ["evict", "--once"],
    "evict --metrics-port": ["evict", "--metrics-port", "0"],
    "scrub": ["scrub"],
    "bench": ["bench", "--size", "4MB", "--chunk-size", "1MB", "--threads", "4"],
    "doctor": ["doctor", "--size", "32MB"],
}


def limited(processes: int, command: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    line = [*AS_USER, "prlimit", f"--nproc={processes}", sys.executable, "-m", "kvshelf.cli"]
    line += [command[0], str(root), *command[1:]]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)


@pytest.fixture
def site() -> Iterator[Path]:
    """A shelf of a user who may have few processes."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("prlimit") is None:
        pytest.skip("other users need root, setpriv and prlimit")
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        root = Path(parent) / "shelf"
        shelf = ShelfMaker(root)
        for i in range(50):
            shelf.add(1000 + i)
        for path in (root, *root.rglob("*")):
            os.chown(path, USER, USER)
        probe = [*AS_USER, "prlimit", "--nproc=1", sys.executable, "-c"]
        probe.append("import threading; threading.Thread(target=int).start()")
        if subprocess.run(probe, check=False, capture_output=True).returncode != 1:
            pytest.skip("no limit of processes here")
        yield root


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_command_says_it_in_one_line(site: Path, command: str, processes: int) -> None:
    done = limited(processes, COMMANDS[command], site)
    if processes == 2 and done.returncode < 2:  # one thread beside the main one is enough
        assert done.stderr == ""
    else:
        assert done.returncode == 11, done
        [line] = done.stderr.splitlines()
        assert line.startswith("kvshelf: ") and "no thread can be made: the limit of" in line
    assert [path for path in site.iterdir() if path.name.startswith(".")] == []


def test_an_evictor_works_with_the_threads_that_there_are(site: Path) -> None:
    command = ["evict", "--once", "--threads", "8", "--shelf-limit", str(20 * 8192)]
    done = limited(3, command, site)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(site.rglob("*.kv"))) == 19


def test_little_memory_is_one_line_too(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    for megabytes in (150, 200, 250, 400):
        line = f"ulimit -v {megabytes * 1024}; exec {sys.executable} -m kvshelf.cli bench {root}"
        done = subprocess.run(
            ["sh", "-c", f"{line} --size 64MB"], capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (2, 11) and len(done.stderr.splitlines()) == 1


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def a_shelf(root: Path, **changes: Any) -> Shelf:
    config = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=2, **changes)
    blocks = np.zeros((8, 4096), dtype=np.uint8)
    return Shelf.of_arrays(root, Identity({"model": "m"}), blocks, config=config)


def test_an_engine_does_not_start_without_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest's own process has no limit: Python's threads, then the core's, are refused."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(ResourceError, match="no thread can be made"):
            a_shelf(tmp_path / "shelf")
        duty = EvictionDuty(tmp_path, "x", limits=Limits(), lease_seconds=5)
        with pytest.raises(ResourceError, match="no thread can be made"):
            duty.start()

    def refuse(*_: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(native._native.Engine, "__init__", refuse)
        text = r"for io_threads \(threads_per_gpu\) 2, lookup_threads 2: no thread can be made"
        with pytest.raises(ResourceError, match=text):
            a_shelf(tmp_path / "shelf")


def test_a_running_engine_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stores, loads, and closes; its namespace is not renewed meanwhile, which is a fault."""
    root = tmp_path / "shelf"
    shelf = a_shelf(root)
    duty = EvictionDuty(
        root,
        shelf.folder,
        limits=Limits(),
        lease_seconds=5,
        renew=lambda: shelf.renew_use(str(root)),
    )
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    key = make_key(b"k" * 32, 0)
    assert shelf.store([Chunk(key, range(3))]) == [FileStatus.OK]
    (root / shelf.folder / "namespace.json").unlink()
    duty._guarded("namespace", duty._renew)
    [fault] = duty.take().faults
    assert "no thread can be made" in fault.text
    assert shelf.load([Chunk(key, range(3))]) == [FileStatus.OK]
    assert shelf.close()


def test_an_evictor_whose_threads_are_refused_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what pthread_create(3) says, which the core passes on."""
    from kvshelf.core import native
    from kvshelf.upkeep.evict.native import Sweep

    ShelfMaker(tmp_path).add(1000)

    real = native.ShelfSweep

    class Refused:
        def __init__(self, *arguments: Any) -> None:
            self._sweep = real(*arguments)

        def __getattr__(self, name: str) -> Any:
            def refuse(*_: object) -> Any:
                raise BlockingIOError(11, "Resource temporarily unavailable")

            return refuse if name in ("scan", "remove") else getattr(self._sweep, name)

    monkeypatch.setattr("kvshelf.upkeep.evict.native._native.ShelfSweep", Refused)
    with pytest.raises(ResourceError, match="no thread can be made"):
        Sweep(tmp_path).scan(all_folders=True, seconds_max=1)
    assert main(["evict", str(tmp_path), "--once"]) == 11
    assert "no thread can be made" in capsys.readouterr().err


def test_buffers_without_memory_name_the_setting(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), before[1]))
    try:
        with pytest.raises(ConfigError, match=r"threads_per_gpu.*max_staging_memory_gb") as caught:
            a_shelf(tmp_path / "shelf", step_bytes=1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert caught.value.value == 2


def test_the_help_says_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "11  the system gives no thread or no memory" in capsys.readouterr().out
