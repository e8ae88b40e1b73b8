"""Whether this user may work in the folders that lie in a shelf. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvshelf.disk.layout import ROOT_FOLDERS, TEMP_FOLDER, is_namespace_folder
from kvshelf.disk.owner import closed
from kvshelf.disk.tree import Type, entries, folder_at, root_at
from kvshelf.doctor.findings import Finding, warning


def check_folders(root: Path) -> list[Finding]:
    """A warning for each folder of kvshelf's that is closed to this user, with what mends it.

    Raises:
        OSError: the root cannot be listed.
    """
    found = []
    for name in _ours(root):
        what, _, mend = closed(root, name).partition("; run as root: ")
        if mend:
            found.append(warning("directory", what, f"run as root: {mend}"))
    return found


def _ours(root: Path) -> Iterator[str]:
    with root_at(root) as descriptor:
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
