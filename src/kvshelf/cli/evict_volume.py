"""The volume that limits in percent are judged by, when ``kvshelf evict`` starts."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kvshelf.cli.common import CommandError, Exit, asked, ended_as_by_ctrl_c, safe
from kvshelf.disk.volume import ZERO_OF_ZERO, Volume, volume_of

if TYPE_CHECKING:
    from kvshelf.upkeep.evict import Limits

# CephFS says 0 of 0 until its monitors have answered: a few seconds. Other mounts say so always.
COUNT_SECONDS = 30.0
_LOOK_SECONDS = 0.25


def counted_volume(root: Path, limits: Limits) -> Volume:
    """The file system of a root. If a limit needs its numbers and statvfs says 0 of 0 bytes, wait
    for them ``COUNT_SECONDS`` at most, and say so once.

    Raises:
        CommandError: it does not answer.
    """
    is_wanted = limits.volume_percent is not None or limits.inode_percent is not None
    volume = _look(root)
    if not is_wanted or volume.bytes_unknown != ZERO_OF_ZERO:
        return volume
    text = f"{ZERO_OF_ZERO}: waits {COUNT_SECONDS:g} s at most for the volume's numbers"
    end = time.monotonic() + COUNT_SECONDS
    with ended_as_by_ctrl_c():
        print(f"kvshelf: {safe(str(root))}: {text}", file=sys.stderr, flush=True)
        while volume.bytes_unknown == ZERO_OF_ZERO and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            volume = _look(root)
    return volume


def _look(root: Path) -> Volume:
    try:
        return asked(str(root), lambda: volume_of(root))
    except OSError as error:
        raise CommandError(Exit.NO_SHELF, f"{safe(str(root))}: {error.strerror}") from error
