"""Whether the process that a name in the shelf names has ended."""

from __future__ import annotations

import os

from kvshelf.disk.layout import TempOwner, owner_is_dead
from kvshelf.disk.this_process import start_ticks_of


def is_gone(owner: TempOwner, here: TempOwner) -> bool | None:
    """None: nobody here can say, because it is of another host, boot or PID namespace, or hidden.

    Args:
        here: this process (``root.this_owner``).
    """
    dead = owner_is_dead(owner, here=here, start_ticks_of=start_ticks_of)
    return None if dead and _is_hidden(owner.pid) else dead


def _is_hidden(pid: int) -> bool:
    """Whether a process is there that /proc does not show: with hidepid, that of another user."""
    if start_ticks_of(pid) is not None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
