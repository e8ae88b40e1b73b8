"""A look of some milliseconds before an engine starts: one line for its log."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kvshelf.doctor.findings import Severity
from kvshelf.doctor.mounts import mount_of
from kvshelf.doctor.room import check_room
from kvshelf.doctor.site import check_mount

_STATS = 16


def quick_line(root: Path) -> str:
    """Kind, room, the time of a stat, and how many findings matter; never raises."""
    try:
        findings = [*check_mount(mount_of(root)), *check_room(root)]  # nothing is written
        started = time.perf_counter()
        for number in range(_STATS):
            os.path.lexists(root / f".absent-{os.getpid()}-{number}")
        each = (time.perf_counter() - started) / _STATS
    except OSError as error:
        return f"kvshelf: {root}: {error.strerror or error}"
    mount, *rest = findings
    room = next(finding.message for finding in rest if finding.check == "room")
    bad = [finding for finding in findings if finding.severity >= Severity.WARNING]
    line = f"kvshelf: {root}: {mount.message}, {room}, a stat takes {1e3 * each:.2f} ms"
    if bad:
        line += f"; {bad[0].message} ({bad[0].remedy}); kvshelf doctor {root} says more"
    return line
