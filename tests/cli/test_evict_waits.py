"""``kvshelf evict`` beside an engine that evicts: it says who does, in log, health and metrics."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from pathlib import Path

from kvshelf.upkeep.evict.lease import open_lease
from tests.cli.test_evict import Daemon, shelf_of
from tests.e2e.servers import free_port

SECONDS = 20.0


def page(port: int, name: str, wanted: str) -> str:
    """A page of the daemon, once it has the text, or as it is after 20 s."""
    end = time.monotonic() + SECONDS
    text = ""
    while wanted not in text and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:  # it is starting
            time.sleep(0.05)
    return text


def test_one_that_waits_says_for_whom_and_takes_over(tmp_path: Path) -> None:
    shelf_of(tmp_path, 3)
    lease = open_lease(tmp_path, lease_seconds=3)
    while not lease.tick():
        time.sleep(0.01)
    port = free_port()
    daemon = Daemon(
        tmp_path, "--shelf-limit", "1GB", "--every", "0.05s", "--lease", "3s",
        "--metrics-port", port, "--json",
    )  # fmt: skip
    held = f'kvshelf:evict_lease_held{{root="{tmp_path}"}}'
    try:
        stderr = daemon.process.stderr
        assert stderr is not None
        says = stderr.readline()
        assert f"process {os.getpid()} holds the lease" in says and "do not count" in says
        assert f"process {os.getpid()} holds the lease" in page(port, "healthz", "waits")
        text = page(port, "metrics", f"{held} 0.0\n")
        assert f"{held} 0.0\n" in text
        assert "\nkvshelf:evict_state" not in text  # an old sample would be another's state
        lease.release()
        text = page(port, "metrics", "evict_state{")
        assert f"{held} 1.0\n" in text
        assert f'kvshelf:volume_total_bytes{{root="{tmp_path}"}}' in text
        assert page(port, "healthz", "ok\n") == "ok\n"
    finally:
        status, _, _ = daemon.end(signal.SIGTERM)
    assert status == 0
