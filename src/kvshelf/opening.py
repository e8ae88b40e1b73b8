"""Opens all roots of a shelf within a time: a mount whose server is gone hangs every call on it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.clock import FileClock, Reading
from kvshelf.deadline import NoAnswerError, within
from kvshelf.engine import Engine
from kvshelf.errors import ConfigError
from kvshelf.layout import NAMESPACE_FILE
from kvshelf.namespace import Identity
from kvshelf.root import is_shelf, open_namespace, open_root, use_namespace
from kvshelf.rootlist import SETTING

# So long a start waits for a lock: a network's round trips, and no grace period of a server.
_LOCK_SECONDS = 2.0


class Uses:
    """Descriptors that hold namespaces (``root.use_namespace``) until ``close``.

    One may come late: a server of NFS 4 that was started anew gives no locks for up to 90 s. What
    the lock keeps away, a scrub that removes what no engine has used for days, has then been told
    by the file's times.

    Threads: any.
    """

    def __init__(self, identity: Identity, modes: Mapping[str, int]) -> None:
        self._identity, self._modes = identity, modes
        self._descriptors: dict[Path, int] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def take(self, root: Path) -> None:
        """Hold the namespace in a root, in the place of what is held there.

        Raises: as ``root.use_namespace``, if it does so soon.
        """

        def work() -> None:
            self._keep(root, use_namespace(root, self._identity, **self._modes))

        with contextlib.suppress(NoAnswerError):
            within(_LOCK_SECONDS, work)

    def renew(self, root: Path) -> None:
        """Make the namespace again if it is gone, as where another shelf's file system was mounted
        or somebody removed it, and hold it: eviction knows no chunks of a folder without one.

        Raises:
            OSError, ConfigError, NotAShelfError: the namespace cannot be made or held.
        """
        if is_shelf(root) and not os.path.lexists(root / self._identity.folder / NAMESPACE_FILE):
            self.take(root)

    def _keep(self, root: Path, descriptor: int | None) -> None:
        if descriptor is None:
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
        for descriptor in descriptors.values():
            _close(descriptor)


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

    def set_clocks(self, engine: Engine) -> None:
        """Tell an engine of these roots what time it is there."""
        for root, reading in enumerate(self.clocks):
            if reading is not None:
                engine.set_clock(reading.ahead_ns, root)


def open_all(
    paths: Sequence[str | os.PathLike[str]],
    identity: Identity,
    *,
    modes: Mapping[str, int],
    timeout_seconds: float,
) -> Opened:
    """Make sure that each path is a shelf's root with the identity's namespace.

    Args:
        modes: ``dir_mode`` and ``file_mode``.
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
    modes: Mapping[str, int],
    asked: list[str],
) -> Opened:
    """``asked`` gets each root before it is asked."""
    opened = Opened(Uses(identity, modes))
    try:
        for path in paths:
            asked.append(str(path))
            opened.roots.append(open_root(path, **modes))
        files = {(at.st_dev, at.st_ino) for at in map(Path.stat, opened.roots)}
        if len(files) < max(1, len(opened.roots)):
            given = [*map(str, opened.roots)]
            raise ConfigError(SETTING, given, "one directory at least, each only once")
        for root in opened.roots:
            asked.append(str(root))
            open_namespace(root, identity, **modes)
            opened.uses.take(root)
            opened.clocks.append(FileClock(root, file_mode=modes["file_mode"]).read())
    except BaseException:
        opened.uses.close()
        raise
    return opened
