"""Opens all roots of a shelf within a time: a mount whose server is gone hangs every call on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.errors import ConfigError
from kvshelf.namespace import Identity
from kvshelf.root import open_root, use_namespace
from kvshelf.rootlist import SETTING


@dataclass(frozen=True, slots=True)
class Opened:
    """
    Attributes:
        roots: the directories.
        uses: descriptors that hold the namespace (``root.use_namespace``); whoever has this owns
            them.
    """

    roots: list[Path] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)


def close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


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

    Threads: any. The calls are made by a thread of their own: a call that hangs in the kernel can
    be left, but not ended. It ends when the storage answers, and undoes what it did.
    """
    opening = _Opening(paths, identity, modes)
    threading.Thread(target=opening.run, name="kvshelf-open", daemon=True).start()
    return opening.wait(timeout_seconds)


class _Opening:
    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        identity: Identity,
        modes: Mapping[str, int],
    ) -> None:
        self._paths, self._identity, self._modes = paths, identity, modes
        self._at = ""  # what is being opened
        self._opened = Opened()
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._is_left = False

    def run(self) -> None:
        try:
            self._open()
        except BaseException as error:  # for the thread that waits
            self._error = error
        with self._lock:
            self._ended.set()
            if self._error is not None or self._is_left:
                close_all(self._opened.uses)

    def wait(self, timeout_seconds: float) -> Opened:
        self._ended.wait(timeout_seconds)
        with self._lock:
            self._is_left = not self._ended.is_set()
        if self._is_left:
            limit = f"did not answer within open_timeout_seconds ({timeout_seconds:g})"
            raise ConfigError(SETTING, self._at, f"{limit}: is its mount hung?")
        if self._error is not None:
            raise self._error
        return self._opened

    def _open(self) -> None:
        roots = self._opened.roots
        for path in self._paths:
            self._at = str(path)
            roots.append(open_root(path, **self._modes))
        if len({(at.st_dev, at.st_ino) for at in map(Path.stat, roots)}) < max(1, len(roots)):
            given = [*map(str, roots)]
            raise ConfigError(SETTING, given, "one directory at least, each only once")
        for root in roots:
            self._at = str(root)
            use = use_namespace(root, self._identity, **self._modes)
            self._opened.uses.extend([] if use is None else [use])
