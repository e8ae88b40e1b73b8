"""``kvshelf evict`` on a volume whose numbers come a moment after the mount, as CephFS's do."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cli.test_evict import Daemon
from tests.harness.quirk_mount import quirk_mount
from tests.upkeep.evict.shelves import ShelfMaker

NOTHING = dict.fromkeys(("f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree"), 0)
CHUNK = 256 << 10
SAYS = "statvfs says 0 of 0: waits 30 s at most for the volume's numbers\n"


@pytest.mark.parametrize("limit", [(), ("--volume-percent", "50"), ("--inode-percent", "50")])
def test_a_limit_by_percent_waits_for_a_volume_that_does_not_count_yet(
    tmp_path: Path, limit: tuple[str, ...]
) -> None:
    with quirk_mount(tmp_path, statvfs=NOTHING) as mount:
        shelf = ShelfMaker(mount.path)
        for i in range(20):
            shelf.add(1000 + i, size=CHUNK)
        # 12 chunks' room: 20 are more than half of it.
        counts = {"volume_bytes": 30 * CHUNK, "volume_inodes": 30}
        daemon = Daemon(mount.path, "--once", "--json", "--keep-percent", 0, *limit)
        try:
            assert daemon.process.stderr is not None
            assert daemon.process.stderr.readline() == f"kvshelf: {mount.path}: {SAYS}"
            mount.set(**counts)
            out, err = daemon.process.communicate(timeout=60)
        finally:
            daemon.process.kill()
        assert daemon.process.returncode == 0, (out, err)
        assert "waits" not in err
        report = json.loads(out)
        assert report["volume"]["total_bytes"] == 30 * CHUNK and report["exceeded"] == []
        assert bool(shelf.gone()) == bool(limit)


def test_limits_of_chunks_wait_for_no_volume(tmp_path: Path) -> None:
    with quirk_mount(tmp_path, statvfs=NOTHING) as mount:
        ShelfMaker(mount.path)
        daemon = Daemon(mount.path, "--once", "--shelf-limit", "1GB")
        out, err = daemon.process.communicate(timeout=60)
        assert (daemon.process.returncode, err) == (0, "") and out.startswith("removed 0 chunks")


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    with quirk_mount(tmp_path, statvfs=NOTHING) as mount:
        ShelfMaker(mount.path)
        daemon = Daemon(mount.path)
        assert daemon.process.stderr is not None
        assert "waits 30 s" in daemon.process.stderr.readline()
        status, seconds, _ = daemon.end(signal.SIGTERM)
        assert status == 130 and seconds < 5
