"""What a shared file system under test has started ends with it, however that comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import daemons as module
from tests.harness.daemons import Daemons, NotStarted


def test_all_of_it_ends_in_reverse_order(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(KeyError), Daemons(tmp_path / "d") as daemons:
        daemons.finally_run("sh", "-c", f"kill -0 $(cat {pid}) || echo first > {tmp_path}/order")
        daemons.start("one", "sh", "-c", f"echo $$ > {pid}; exec sleep 600")
        daemons.until(lambda: pid.exists() and pid.read_text().strip(), "process")
        daemons.finally_run("sh", "-c", f"kill -0 $(cat {pid}) && echo last > {tmp_path}/running")
        raise KeyError
    assert not Path("/proc", pid.read_text().strip()).exists()
    assert (tmp_path / "order").exists() and (tmp_path / "running").exists()


def test_why_it_did_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 1.0)
    with Daemons(tmp_path / "d") as daemons:
        with pytest.raises(NotStarted, match="broken"):
            daemons.run("sh", "-c", "echo broken >&2; exit 3")
        daemons.start("one", "sh", "-c", "echo no disk; exit 1")
        with pytest.raises(NotStarted, match=r"no quorum in time: one: no disk"):
            daemons.until(lambda: False, "quorum")
