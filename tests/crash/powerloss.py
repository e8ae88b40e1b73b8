"""What a disk may hold after a power loss, from the calls that a writer made.

The rules are POSIX's, which promise little (and ext4, XFS and NFS keep more of it):

- What was written to a file since its last sync may be there, lost, or there in part, by pages of
  4 KiB; in place of a lost page are zeros or, where blocks were reused, garbage. The size may be
  the old or the new one.
- A name that was made or removed in a folder since the folder's last sync may be there or not, each
  for itself: after a rename both names, one or none.
- A sync of a file says nothing about its name.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

PAGE = 4096


@dataclass(frozen=True)
class Operation:
    """A line of preload.cpp's trace.

    Attributes:
        call: number of the call, of a write; else 0.
    """

    word: str
    words: tuple[str, ...]
    data: bytes = b""
    call: int = 0


def read_trace(path: Path) -> list[Operation]:
    found = []
    with path.open("rb") as file:
        while line := file.readline():
            word, *words = line.decode().split()
            if word == "write":
                data = file.read(int(words[2]))
                found.append(Operation(word, tuple(words), data, int(words[3])))
            else:
                found.append(Operation(word, tuple(words)))
    return found


@dataclass
class File:
    """``synced`` is what is safe; ``content`` is what a program would read now."""

    synced: bytes = b""
    content: bytes = b""
    dirty: set[int] = field(default_factory=set)  # pages written since the last sync

    def write(self, offset: int, data: bytes) -> None:
        self.resize(max(len(self.content), offset))
        self.content = self.content[:offset] + data + self.content[offset + len(data) :]
        self.dirty.update(range(offset // PAGE, -(-(offset + len(data)) // PAGE)))

    def resize(self, size: int) -> None:
        self.content += bytes(max(size - len(self.content), 0))

    def sync(self) -> None:
        self.synced = self.content
        self.dirty.clear()

    def after(self, loss: str, rng: random.Random) -> bytes:
        """Its bytes after a power loss of a kind (``LOSSES``)."""
        if loss == "nothing" or self.content == self.synced:
            return self.content
        if loss == "size":
            return self.synced
        dirty = sorted(self.dirty)
        kept = {
            "pages": set(),
            "all but the first": set(dirty[:1]),
            "the first": set(dirty[1:]),
            "the last half": set(dirty[: len(dirty) // 2]),
            "every other": set(dirty[::2]),
        }.get(loss, {page for page in dirty if rng.random() < 0.5})
        made = bytearray(self.content)
        for page in self.dirty - kept:
            span = slice(page * PAGE, min((page + 1) * PAGE, len(made)))
            old = self.synced[span].ljust(span.stop - span.start, b"\0")
            made[span] = rng.randbytes(len(old)) if loss == "garbage" else old
        return bytes(made)


LOSSES = (
    "nothing",
    "size",  # and all that was written
    "pages",  # all of them, but the size is the new one: zeros
    "all but the first",  # the header alone
    "the first",
    "the last half",
    "every other",
    "garbage",
    "some",
)


@dataclass
class Folder:
    """``names`` maps to an inode number, or None for a folder; ``unsynced`` are (name, target)."""

    names: dict[str, int | None] = field(default_factory=dict)
    unsynced: list[tuple[str, int | None, bool]] = field(default_factory=list)

    def after(self, kept: list[bool]) -> dict[str, int | None]:
        names = dict(self.names)
        for (name, target, added), keep in zip(self.unsynced, kept, strict=True):
            if keep and added:
                names[name] = target
            elif keep:
                names.pop(name, None)
        return names


class Disk:
    """The shelf's root, its folders by path and its files by inode number."""

    def __init__(self) -> None:
        self.folders: dict[str, Folder] = {}
        self.files: dict[int, File] = {}
        self.marks: set[str] = set()

    def apply(self, op: Operation) -> None:
        match op.word, *op.words:
            case "mkdir", ".":
                self.folders["."] = Folder()
            case "mkdir", path:
                self.folders[path] = Folder()
                self.change(path, None, added=True)
            case "create", path, inode:
                self.files[int(inode)] = File()
                self.change(path, int(inode), added=True)
            case "write", inode, offset, *_:
                self.files[int(inode)].write(int(offset), op.data)
            case "size", inode, size:
                self.files[int(inode)].resize(int(size))
            case "sync", inode:
                self.files[int(inode)].sync()
            case "syncdir", path:
                folder = self.folders[path]
                folder.names = folder.after([True] * len(folder.unsynced))
                folder.unsynced.clear()
            case "link", path, to:
                self.change(to, self.find(path), added=True)
            case "unlink", path:
                self.change(path, None, added=False)
            case "rename", path, to:
                self.change(to, self.find(path), added=True)
                self.change(path, None, added=False)
            case "mark", *words:
                self.marks.add(" ".join(words))
            case _:
                raise ValueError(op)

    def change(self, path: str, target: int | None, *, added: bool) -> None:
        where = PurePosixPath(path)
        self.folders[str(where.parent)].unsynced.append((where.name, target, added))

    def find(self, path: str) -> int | None:
        where = PurePosixPath(path)
        folder = self.folders[str(where.parent)]
        return folder.after([True] * len(folder.unsynced))[where.name]

    def states(self, rng: random.Random) -> Iterator[dict[str, bytes | None]]:
        """What may be there after a power loss now: bytes by path, None for a folder."""
        if "." not in self.folders:
            return
        for choice in self.choices(rng):
            names = {path: folder.after(choice[path]) for path, folder in self.folders.items()}
            for loss in LOSSES:
                tree: dict[str, bytes | None] = {}
                self.walk(".", names, loss, rng, tree)
                yield tree

    def choices(self, rng: random.Random) -> Iterator[dict[str, list[bool]]]:
        """Which unsynced names last: all, none, all but one folder's, one folder's, and some."""
        counts = {path: len(folder.unsynced) for path, folder in self.folders.items()}
        yield {path: [True] * count for path, count in counts.items()}
        if not any(counts.values()):
            return
        yield {path: [False] * count for path, count in counts.items()}
        for chosen in (path for path, count in counts.items() if count):
            for lasts in (True, False):
                yield {p: [(p == chosen) == lasts] * count for p, count in counts.items()}
        for _ in range(3):
            yield {p: [rng.random() < 0.7 for _ in range(count)] for p, count in counts.items()}

    def walk(
        self,
        path: str,
        names: dict[str, dict[str, int | None]],
        loss: str,
        rng: random.Random,
        tree: dict[str, bytes | None],
    ) -> None:
        for name, target in names[path].items():
            inner = str(PurePosixPath(path) / name)
            if target is None:
                tree[inner] = None
                self.walk(inner, names, loss, rng, tree)
            else:
                tree[inner] = self.files[target].after(loss, rng)


def build(tree: dict[str, bytes | None], root: Path) -> None:
    """Make the files of a state."""
    root.mkdir()
    for path, data in sorted(tree.items()):
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
