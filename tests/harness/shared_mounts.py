"""File systems that nodes share, each mounted twice on this machine: where tests find them all."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import cephfs, gluster, juicefs
from tests.harness.daemons import NotStarted


@dataclass(frozen=True)
class FileSystem:
    """``mount`` mounts it twice below a folder; ``needed`` are its programs."""

    mount: Callable[[Path], AbstractContextManager[list[Path]]]
    needed: tuple[str, ...]

    def why_not(self) -> str | None:
        """The reason why it cannot be had here, or None."""
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            return "mounting needs root and /dev/fuse"
        missing = [program for program in self.needed if shutil.which(program) is None]
        return f"not installed: {', '.join(missing)}" if missing else None


def _juicefs(trash_days: int) -> FileSystem:
    return FileSystem(functools.partial(juicefs.mounted, trash_days=trash_days), juicefs.PROGRAMS)


SYSTEMS = {
    "juicefs": _juicefs(0),
    "juicefs-trash": _juicefs(1),
    "cephfs": FileSystem(cephfs.mounted, cephfs.PROGRAMS),
    "gluster": FileSystem(gluster.mounted, gluster.PROGRAMS),
}


@contextlib.contextmanager
def mounted(system: FileSystem, folder: Path) -> Iterator[list[str] | str]:
    """Its two mounts, beneath ``folder``; or why it did not start."""
    with contextlib.ExitStack() as stack:
        try:
            places = stack.enter_context(system.mount(folder / "shared"))
        except NotStarted as error:
            yield f"it did not start: {error}"
            return
        yield [str(place) for place in places]
