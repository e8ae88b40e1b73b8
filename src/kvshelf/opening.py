"""Opens all roots of a shelf within a time: a mount whose server is gone hangs every call on it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvshelf.config.rootlist import SETTING
from kvshelf.disk.clock import FileClock, Reading
from kvshelf.disk.deadline import NoAnswerError, within
from kvshelf.disk.keeper import RootKeeper
from kvshelf.disk.layout import NAMESPACE_FILE, TEMP_FOLDER
from kvshelf.disk.leftovers import remove_dead_scratch
from kvshelf.disk.namespace import Identity
from kvshelf.disk.owner import say_if_closed
from kvshelf.disk.root import is_shelf, open_namespace, open_root, use_namespace
from kvshelf.errors import ConfigError, NotAShelfError

# So long a start waits for a lock: a network's round trips, and no grace period of a server.
_LOCK_SECONDS = 2.0
_LOGGER = logging.getLogger("kvshelf")
_NO_LOCK = (
    "%s: no lock (flock) on the namespace is to be had there: `kvshelf scrub --unused-for` knows "
    "by file times alone that it is in use; give it more days than any engine is idle"
)


class Uses:
    """Descriptors that hold namespaces (``root.use_namespace``) until ``close``.

    One may come late: a server of NFS 4 that was started anew gives no locks for up to 90 s. What
    the lock keeps away, a scrub that removes what no engine has used for days, has then been told
    by the file's times.

    Threads: any.
    """

    def __init__(self, identity: Identity, modes: Mapping[str, Any]) -> None:
        self._identity, self._modes = identity, modes
        self._descriptors: dict[Path, int] = {}
        self._unlocked: set[Path] = set()
        self._keepers: dict[Path, RootKeeper] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def take(self, root: Path) -> None:
        """Hold the namespace in a root, in the place of what is held there.

        Raises: as ``root.use_namespace``, if it does so soon.
        """
        if root not in self._keepers:
            self._keepers[root] = RootKeeper(
                root,
                file_mode=self._modes["file_mode"],
                hold=False,  # the engine does
            )

        def work() -> None:
            self._keep(root, use_namespace(root, self._identity, **self._modes))

        with contextlib.suppress(NoAnswerError):
            within(_LOCK_SECONDS, work)

    def renew(self, root: Path) -> None:
        """Make marker and namespace again if they are absent, and hold the namespace: a purge may
        have removed them, or another shelf's file system was mounted. Eviction does nothing without
        a marker, and knows no chunks of a folder without namespace.json.

        Raises:
            OSError, ConfigError, NotAShelfError: the namespace cannot be made or held.
        """
        keeper = self._keepers.get(root)
        if keeper is not None:
            keeper.keep()
            with contextlib.suppress(NotAShelfError, FileNotFoundError):  # an unmounted mount point
                keeper.follow()
        if is_shelf(root) and not os.path.lexists(root / self._identity.folder / NAMESPACE_FILE):
            self.take(root)

    def _keep(self, root: Path, descriptor: int | None) -> None:
        if descriptor is None:
            if root not in self._unlocked:
                self._unlocked.add(root)
                _LOGGER.warning(_NO_LOCK, root)
            return
        old: int | None = descriptor
        with self._lock:
            if not self._is_closed:
                old = self._descriptors.pop(root, None)
                self._descriptors[root] = descriptor
        if old is not None:
            _close(old)

    def __len__(self) -> int:
        with self._lock:
            return len(self._descriptors)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            descriptors, self._descriptors = self._descriptors, {}
            keepers, self._keepers = self._keepers, {}
        for descriptor in descriptors.values():
            _close(descriptor)
        for keeper in keepers.values():
            keeper.close()


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # of a mount that is gone: it is closed all the same
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Opened:
    """
    Attributes:
        uses: hold the namespace in each root; whoever has this closes them.
        roots: the directories.
        clocks: of their file systems; None where that could not be measured.
    """

    uses: Uses
    roots: list[Path] = field(default_factory=list)
    clocks: list[Reading | None] = field(default_factory=list)


def open_all(
    paths: Sequence[str | os.PathLike[str]],
    identity: Identity,
    *,
    modes: Mapping[str, Any],
    timeout_seconds: float,
) -> Opened:
    """Make sure that each path is a shelf's root with the identity's namespace.

    Args:
        modes: ``dir_mode``, ``file_mode`` and ``durability``, as ``root.open_root`` takes them.
        timeout_seconds: for all of them together.

    Raises:
        ConfigError: one cannot be used or does not answer in time, or two are one directory.
        NotAShelfError: as ``root.open_root`` and ``root.open_namespace``.

    Threads: any.
    """
    asked: list[str] = []
    try:
        return within(
            timeout_seconds,
            lambda: _open(paths, identity, modes, asked),
            undo=lambda opened: opened.uses.close(),
        )
    except NoAnswerError as error:
        limit = f"did not answer within open_timeout_seconds ({timeout_seconds:g})"
        root = [str(paths[0]), *asked][-1]
        raise ConfigError(SETTING, root, f"{limit}: is its mount hung?") from error


def _open(
    paths: Sequence[str | os.PathLike[str]],
    identity: Identity,
    modes: Mapping[str, Any],
    asked: list[str],
) -> Opened:
    """``asked`` gets each root before it is asked."""
    opened = Opened(Uses(identity, modes))
    try:
        for path in paths:
            asked.append(str(path))
            opened.roots.append(open_root(path, **modes))
            remove_dead_scratch(opened.roots[-1])
        files = {(at.st_dev, at.st_ino) for at in map(Path.stat, opened.roots)}
        if len(files) < max(1, len(opened.roots)):
            given = [*map(str, opened.roots)]
            raise ConfigError(SETTING, given, "one directory at least, each only once")
        for root in opened.roots:
            asked.append(str(root))
            open_namespace(root, identity, **modes)
            opened.uses.take(root)
            for name in (identity.folder, f"{identity.folder}/{TEMP_FOLDER}"):
                say_if_closed(root, name)
            opened.clocks.append(FileClock(root, file_mode=modes["file_mode"]).read())
    except BaseException:
        opened.uses.close()
        raise
    return opened
