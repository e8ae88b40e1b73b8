"""A folder of our own in a directory that a user names: made, used, and removed again."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from kvshelf.disk.layout import MARKER, temp_name
from kvshelf.disk.leftovers import remove_dead_scratch
from kvshelf.disk.owner import Users, give
from kvshelf.disk.root import FORMAT_VERSION
from kvshelf.disk.this_process import this_owner
from kvshelf.disk.tree import StillOpenError, remove_tree, root_at

# The root's group may remove it, if this process is killed.
_MODE = 0o770


class Scratch:
    """A context: ``with Scratch(root) as folder``. The name says whose it is, as temp files do
    (docs/layout.md), so an empty directory with one in it still counts as empty; the marker in it
    says that what lies below may be removed. Those of processes that were killed are removed first.

    Raises:
        OSError: the directory takes no folder, or it cannot be removed.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)
        self.path = self._root

    def __enter__(self) -> Self:
        remove_dead_scratch(self._root)
        owner = this_owner()
        for count in itertools.count():
            path = self._root / f".{temp_name(owner, count)}"
            try:
                path.mkdir(mode=_MODE)
            except FileExistsError:
                continue
            break
        self.path = path
        try:
            give(path, _MODE, Users.of(self._root))
            (path / MARKER).write_text(json.dumps({"kvshelf": FORMAT_VERSION}))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        # The marker goes last: if this is killed, a scrub does the rest. So it does where a thread
        # still waits for a lock in there, as in the grace period of an NFS 4 server.
        with root_at(self._root) as root, contextlib.suppress(StillOpenError):
            remove_tree(root, self.path.name, self.path.stat().st_dev, last=MARKER)
