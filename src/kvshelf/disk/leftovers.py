"""Removes scratch folders of killed ``kvshelf bench`` and ``doctor``. Any thread."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kvshelf.disk.layout import MARKER, TempOwner, parse_temp_name
from kvshelf.disk.root import check_root
from kvshelf.disk.this_process import is_gone, this_owner
from kvshelf.disk.tree import entries, folder_at, remove_tree, root_at
from kvshelf.errors import NotAShelfError


def remove_dead_scratch(root: Path) -> int:
    """Remove the scratch folders in a directory, be it a shelf or not, whose process has ended for
    sure; return how many.

    A folder goes only if its name says an owner of this host, boot and PID namespace that is gone,
    and if it carries our marker or is empty. Of all others ``kvshelf scrub`` judges the age. What
    cannot be removed stays for the next run. Follows no link.
    """
    here, removed = this_owner(), 0
    with contextlib.suppress(OSError), root_at(root) as descriptor:
        with os.scandir(descriptor) as scan:
            names = [entry.name for entry in scan if entry.name.startswith(".")]
        for name in names:
            with contextlib.suppress(OSError):
                removed += _remove_if_dead(descriptor, name, here)
    return removed


def _remove_if_dead(root: int, name: str, here: TempOwner) -> bool:
    owner = parse_temp_name(name.removeprefix("."))
    if owner is None or is_gone(owner, here) is not True:
        return False
    with folder_at(root, name) as folder:
        if not is_scratch(folder):
            return False
    remove_tree(root, name, os.fstat(root).st_dev, last=MARKER)
    return True


def is_scratch(folder: int) -> bool:
    """Whether a folder that is named as a temp file may go with all that is in it.

    Raises:
        OSError: it cannot be read.
    """
    try:
        check_root("", dir_fd=folder)
    except NotAShelfError:
        return False
    except FileNotFoundError:
        return next(entries(folder), None) is None
    return True
