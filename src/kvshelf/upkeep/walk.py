"""A walk over a shelf, or a part of it, in order of paths and resumable. One thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from kvshelf.disk.layout import (
    NAMESPACE_FILE,
    ROOT_FILES,
    ROOT_FOLDERS,
    TEMP_FOLDER,
    is_doomed_folder,
    is_hash_folder,
    is_namespace_folder,
    parse_chunk_path,
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


@dataclass(frozen=True, slots=True)
class Found:
    """An entry.

    Attributes:
        folder: descriptor of the folder that it is in, open until the walk goes on.
        path: relative to the root.
        error: of a fault.
    """

    folder: int
    path: str
    what: What
    error: OSError | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def what_is(path: str, kind: Type) -> What:
    """What an entry of a shelf is, by its path relative to the root and its type."""
    parts = path.split("/")
    judge = (_in_root, _in_namespace, _in_folder, _in_hash_folder)[len(parts) - 1]
    return judge(parts, kind) or What.FOREIGN


def _in_root(parts: Sequence[str], kind: Type) -> What | None:
    [name] = parts
    # Not one without a dot: the root is no folder for temp files.
    temp = name.startswith(".") and parse_temp_name(name[1:]) is not None
    if kind is Type.FOLDER:
        if is_namespace_folder(name):
            return What.FOLDER
        if name in ROOT_FOLDERS:  # others tend them
            return What.ROOT_FILE
        if is_doomed_folder(name):
            return What.REMOVED
        return What.SCRATCH if temp else None
    if kind is Type.FILE and name in ROOT_FILES:
        return What.ROOT_FILE
    return What.TEMP if kind is Type.FILE and temp else None


def _in_namespace(parts: Sequence[str], kind: Type) -> What | None:
    name = parts[1]
    if kind is Type.FILE:
        return What.NAMESPACE if name == NAMESPACE_FILE else None
    ours = name == TEMP_FOLDER or parse_rank_folder(name) is not None
    return What.FOLDER if kind is Type.FOLDER and ours else None


def _in_folder(parts: Sequence[str], kind: Type) -> What | None:
    _, parent, name = parts
    if parent != TEMP_FOLDER:
        return What.FOLDER if kind is Type.FOLDER and is_hash_folder(name) else None
    temp = parse_temp_name(name.removeprefix(".")) is not None
    return What.TEMP if kind is Type.FILE and temp else None


def _in_hash_folder(parts: Sequence[str], kind: Type) -> What | None:
    chunk = kind is Type.FILE and parse_chunk_path("/".join(parts)) is not None
    return What.CHUNK if chunk else None


def walk(
    folder: int, path: str = "", *, after: Sequence[str] = (), skip: str | None = None
) -> Iterator[Found]:
    """Every entry of a folder of a shelf and of the folders of ours in it, in order of paths.

    A folder comes after what is in it. Links and foreign folders are not entered. What vanishes
    meanwhile is no fault.

    Args:
        folder: its descriptor.
        path: of the folder, relative to the root; "" for the root.
        after: names of the path behind which the walk goes on, relative to the folder.
        skip: name of folders that are not entered.
    """
    first = after[0] if after else ""
    try:
        for entry in entries(folder, first, inclusive=len(after) > 1):
            inner = f"{path}/{entry.name}" if path else entry.name
            what = what_is(inner, entry.type)
            if what is What.FOLDER and entry.name != skip:
                rest = after[1:] if entry.name == first else ()
                yield from _inside(folder, entry.name, inner, rest, skip)
            yield Found(folder, inner, what)
    except OSError as error:
        if error.errno not in GONE:
            yield Found(folder, path, What.FAULT, error)


def _inside(
    parent: int, name: str, path: str, after: Sequence[str], skip: str | None
) -> Iterator[Found]:
    try:
        with folder_at(parent, name) as folder:
            yield from walk(folder, path, after=after, skip=skip)
    except OSError as error:
        if error.errno not in GONE:
            yield Found(parent, path, What.FAULT, error)
