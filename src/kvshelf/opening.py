"""Opens all roots of a shelf within a time: a mount whose server is gone hangs every call on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.deadline import NoAnswerError, within
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

    Threads: any.
    """
    asked: list[str] = []
    try:
        return within(
            timeout_seconds,
            lambda: _open(paths, identity, modes, asked),
            undo=lambda opened: close_all(opened.uses),
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
    opened = Opened()
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
            use = use_namespace(root, identity, **modes)
            opened.uses.extend([] if use is None else [use])
    except BaseException:
        close_all(opened.uses)
        raise
    return opened
