"""A shelf with one hostile thing in it, and a tree beside it that must stay as it is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvshelf import Chunk, Identity, Shelf, make_key
from kvshelf.engine import EngineConfig, FileStatus

IDENTITY = Identity({"model": "org/model"})
KEY = make_key(bytes(range(32)), 0)
OTHER_KEY = make_key(bytes(range(1, 33)), 0)  # of another folder
CONFIG = EngineConfig(
    io_threads=2,
    load_only_threads=1,
    lookup_threads=2,
    piece_bytes=8192,
    step_bytes=4096,
    write_buffer_bytes=1 << 20,
    touch_interval_seconds=0.0,
)


class Site:
    """``base/root`` is the shelf, with one chunk in it; ``base/outside`` is somebody else's."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.outside = base / "outside"
        (self.outside / "folder").mkdir(parents=True)
        self.blocks = np.random.default_rng(0).integers(0, 256, (8, 4096), dtype=np.uint8)
        with self.shelf() as shelf:
            assert shelf.store([Chunk(KEY, range(3))]) == [FileStatus.OK]
            chunk = self.root / shelf.path_of(KEY)
        # A link to the outside would find a marker, a namespace and a good chunk there.
        names = [chunk.name, "kvshelf.json", "namespace.json", f"folder/{chunk.name}"]
        folder = self.root / IDENTITY.folder
        sources = [chunk, self.root / "kvshelf.json", folder / "namespace.json", chunk]
        for name, source in zip(names, sources, strict=True):
            shutil.copy(source, self.outside / name)
        self.places = {
            "marker": self.root / "kvshelf.json",
            "namespace": folder,
            "namespace.json": folder / "namespace.json",
            "tmp": folder / "tmp",
            "rank": chunk.parent.parent,
            "hhh": chunk.parent,
            "chunk": chunk,
        }
        self._watched = [self.outside, *self.outside.rglob("*")]
        for path in self._watched:  # the access time is the older: reading renews it (relatime)
            os.utime(path, (1000, 2000))
        self._before = self.state()

    def shelf(self) -> Shelf:
        return Shelf.of_arrays(self.root, IDENTITY, self.blocks, config=CONFIG)

    def state(self) -> list[tuple[int, ...]]:
        """Of all outside; whatever reads or writes there changes it, and looking does not."""
        found = []
        for path in self._watched:
            now = path.lstat()
            entry = (now.st_mode, now.st_uid, now.st_gid, now.st_size, now.st_nlink)
            found.append((*entry, now.st_atime_ns, now.st_mtime_ns, now.st_ctime_ns))
        return found

    def outside_is_untouched(self) -> bool:
        return self.state() == self._before


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def put_socket(site: Site, path: Path) -> None:
    """By a short name: an address has 107 bytes."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name[:90])
        Path(path.name[:90]).rename(path.name)
    finally:
        os.chdir(before)


def put_hard_link(site: Site, path: Path) -> None:
    """Of a file that is not the canary: a hard link is the file, and reading it renews its time."""
    linked = site.outside.with_name("linked")
    linked.write_text(json.dumps(IDENTITY.to_json()))
    os.link(linked, path)


THINGS: dict[str, Callable[[Site, Path], None]] = {
    "link to a file": lambda site, path: path.symlink_to(site.outside / "namespace.json"),
    "link to the same": lambda site, path: path.symlink_to(site.outside / path.name),
    "link to a folder": lambda site, path: path.symlink_to(site.outside / "folder"),
    "relative link": lambda site, path: path.symlink_to(
        os.path.relpath(site.outside / "folder", path.parent)
    ),
    "link to nothing": lambda site, path: path.symlink_to(site.outside / "absent"),
    "link to itself": lambda site, path: path.symlink_to(path.name),
    "fifo": lambda site, path: os.mkfifo(path),
    "socket": put_socket,
    "device": lambda site, path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5)),
    "folder": lambda site, path: path.mkdir(),
    "full folder": lambda site, path: (
        [(path / f"{i:0200}").mkdir(parents=True) for i in range(50)] and None
    ),
    "empty file": lambda site, path: path.touch(),
    "garbage": lambda site, path: path.write_bytes(b"\xff\x00{" * 5000) and None,
    "hard link": put_hard_link,
}
