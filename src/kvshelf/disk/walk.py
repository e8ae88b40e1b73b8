"""The walk over a shelf, or a part of it, in order of paths and resumable. One thread.

Scrub, census and the proof of a lost marker stand on it. Eviction has a walk of its own, in C++.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

from kvshelf.disk.layout import (
    NAMESPACE_FILE,
    ROOT_FILES,
    ROOT_FOLDERS,
    TEMP_FOLDER,
    is_chunk_name,
    is_doomed_folder,
    is_hash_folder,
    is_namespace_folder,
    parse_rank_folder,
    parse_temp_name,
)
from kvshelf.disk.tree import GONE, Type, entries, folder_at


class What(Enum):
    """What an entry is, by its path and type."""

    FOLDER = "folder"  # of ours, with more of ours in it
    CHUNK = "chunk"
    TEMP = "temp"
    NAMESPACE = "namespace"  # a namespace.json
    REMOVED = "removed"  # a namespace that is being removed
    SCRATCH = "scratch"  # a folder of a bench or a doctor
    ROOT_FILE = "root file"
    FOREIGN = "foreign"
    FAULT = "fault"  # a folder that could not be listed


class Found(NamedTuple):
    """An entry.

    Attributes:
        folder: descriptor of the folder that it is in, open until the walk goes on.
        name: in that folder; "" if the folder itself could not be listed.
        path: relative to the root.
        error: of a fault.
    """

    folder: int
    name: str
    path: str
    what: What
    error: OSError | None = None


def what_is(folder: str, name: str, kind: Type) -> What:
    """What an entry is.

    Args:
        folder: one of ours, relative to the root; "" for the root.
    """
    return _judge(folder)(name, kind)


def _judge(folder: str) -> Callable[[str, Type], What]:
    """What entries of a folder are, by their names and types."""
    parts = folder.split("/")
    if not folder:
        return _in_root
    if len(parts) == 1:
        return _in_namespace
    return partial(_in_folder if len(parts) == 2 else _in_hash_folder, parts[-1])


def _in_root(name: str, kind: Type) -> What:
    # Not one without a dot: the root is no folder for temp files.
    temp = name.startswith(".") and parse_temp_name(name[1:]) is not None
    if kind is Type.FOLDER:
        if is_namespace_folder(name):
            return What.FOLDER
        if name in ROOT_FOLDERS:  # others tend them
            return What.ROOT_FILE
        if is_doomed_folder(name):
            return What.REMOVED
        return What.SCRATCH if temp else What.FOREIGN
    if kind is Type.FILE and name in ROOT_FILES:
        return What.ROOT_FILE
    return What.TEMP if kind is Type.FILE and temp else What.FOREIGN


def _in_namespace(name: str, kind: Type) -> What:
    if kind is Type.FILE:
        return What.NAMESPACE if name == NAMESPACE_FILE else What.FOREIGN
    ours = name == TEMP_FOLDER or parse_rank_folder(name) is not None
    return What.FOLDER if kind is Type.FOLDER and ours else What.FOREIGN


def _in_folder(folder: str, name: str, kind: Type) -> What:
    if folder != TEMP_FOLDER:
        return What.FOLDER if kind is Type.FOLDER and is_hash_folder(name) else What.FOREIGN
    temp = parse_temp_name(name.removeprefix(".")) is not None
    return What.TEMP if kind is Type.FILE and temp else What.FOREIGN


def _in_hash_folder(folder: str, name: str, kind: Type) -> What:
    return What.CHUNK if kind is Type.FILE and is_chunk_name(folder, name) else What.FOREIGN


def walk(
    folder: int,
    path: str = "",
    *,
    after: Sequence[str] = (),
    skip: str | None = None,
    depth: int = 3,
) -> Iterator[Found]:
    """Every entry of a folder of a shelf and of the folders of ours in it, in order of paths.

    A folder comes after what is in it. Links and foreign folders are not entered, junk is left out.
    What vanishes meanwhile is no fault.

    Args:
        folder: its descriptor.
        path: of the folder, relative to the root; "" for the root.
        after: names of the path behind which the walk goes on, relative to the folder.
        skip: name of folders that are not entered.
        depth: levels of folders beneath this one that are entered.
    """
    first, judge = after[0] if after else "", _judge(path)
    before = f"{path}/" if path else ""
    try:
        for name, kind in entries(folder, first, inclusive=len(after) > 1):
            inner, what = before + name, judge(name, kind)
            if what is What.FOLDER and depth and name != skip:
                rest = after[1:] if name == first else ()
                yield from _inside(folder, inner, after=rest, skip=skip, depth=depth - 1)
            yield Found(folder, name, inner, what)
    except OSError as error:
        if error.errno not in GONE:
            yield Found(folder, "", path, What.FAULT, error)


def _inside(
    parent: int, path: str, *, after: Sequence[str], skip: str | None, depth: int
) -> Iterator[Found]:
    name = path.rpartition("/")[2]
    try:
        with folder_at(parent, name) as folder:
            yield from walk(folder, path, after=after, skip=skip, depth=depth)
    except OSError as error:
        if error.errno not in GONE:
            yield Found(parent, name, path, What.FAULT, error)
