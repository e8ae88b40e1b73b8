"""Whether this user may work in the folders that lie in a shelf. Reads only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from kvshelf.disk.layout import ROOT_FOLDERS, TEMP_FOLDER, is_namespace_folder
from kvshelf.disk.owner import explained
from kvshelf.disk.tree import Type, entries, folder_at
from kvshelf.doctor.findings import Finding, warning


def check_folders(root: Path) -> list[Finding]:
    """A warning for each folder of kvshelf's that is closed to this user, with what mends it.

    Raises:
        OSError: the root cannot be listed.
    """
    found = []
    for name in _ours(root):
        # access(2), not faccessat2(2), which some container profiles refuse.
        if not os.access(root / name, os.W_OK | os.X_OK):
            denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            text = str(explained(root, name, denied).strerror)
            what, _, mend = text.partition("; run as root: ")
            if mend:
                found.append(warning("directory", what, f"run as root: {mend}"))
    return found


def _ours(root: Path) -> Iterator[str]:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, kind in entries(descriptor):
            if kind is not Type.FOLDER:
                continue
            if name in ROOT_FOLDERS:
                yield name
            elif is_namespace_folder(name):
                yield name
                try:
                    with folder_at(descriptor, name) as folder:
                        if any(inner == (TEMP_FOLDER, Type.FOLDER) for inner in entries(folder)):
                            yield f"{name}/{TEMP_FOLDER}"
                except OSError:  # closed altogether: the folder itself says so
                    continue
    finally:
        os.close(descriptor)
