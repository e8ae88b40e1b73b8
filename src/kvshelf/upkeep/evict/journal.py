"""What was evicted: small files that evictors append to and engines read.

    <root>/removed/<namespace folder>-<token>-<part>.keys

    MAGIC, then records: one byte with the length of a key (12 to 128), the key

A file has one writer, the evictor with that token. A record is written after its chunk's file is
gone. Entries may be lost (a full disk, a long partition, a file that is cleaned before it is read):
then a lookup finds out later.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kvshelf.disk.keys import GROUP_BYTES, HASH_BYTES_MIN, KEY_BYTES_MAX
from kvshelf.disk.layout import REMOVED_FOLDER, RemovedName, parse_removed_name
from kvshelf.disk.layout import REMOVED_MAGIC as MAGIC
from kvshelf.upkeep.evict.folders import open_file, opened
from kvshelf.upkeep.evict.lease import boot_seconds

# A part is closed at this size: 110,000 keys of a SHA-256.
PART_BYTES_MAX = 4 << 20
# Readers look every second or so; what nobody appended to for so long is read, or never will be.
KEEP_SECONDS = 600.0
# All parts together; beyond, those that were appended to last go last.
TOTAL_BYTES_MAX = 64 << 20
# Of one call of a reader, so that it does not grow without bound.
READ_BYTES_MAX = 1 << 20
_KEY_BYTES_MIN = HASH_BYTES_MIN + GROUP_BYTES


class RemovedWriter:
    """Appends keys, and cleans the folder. One thread.

    Args:
        token: 16 hex digits, this process's own.
        clock: seconds of this process.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        token: str,
        *,
        dir_mode: int = 0o2770,
        file_mode: int = 0o640,
        clock: Callable[[], float] = boot_seconds,
    ) -> None:
        self._root = Path(root)
        self._token = token
        self._dir_mode = dir_mode
        self._file_mode = file_mode
        self._clock = clock
        self._parts: dict[str, tuple[int, float]] = {}  # by namespace: part, last use
        self._seen: dict[str, tuple[int, float]] = {}  # by name: bytes, since when

    def append(self, folder: str, keys: Sequence[bytes]) -> None:
        """Say that these chunks of a namespace are gone.

        Raises:
            OSError: it could not be written; that does no harm.
        """
        now = self._clock()
        part, appended = self._parts.get(folder, (0, now))
        if now - appended > KEEP_SECONDS / 2:
            part += 1  # the old one may be cleaned away right now
        data = b"".join(bytes((len(key),)) + key for key in keys)
        with opened(self._root, REMOVED_FOLDER, dir_mode=self._dir_mode) as parent:
            name = str(RemovedName(folder, self._token, part))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            file = open_file(parent, name, flags, self._file_mode)
            if file is None:
                raise FileNotFoundError(name)
            try:
                size = os.fstat(file).st_size
                data = data if size else MAGIC + data
                written = os.write(file, data)
                # Nothing could be read after a torn record.
                if written < len(data) or size + written >= PART_BYTES_MAX:
                    part += 1
            finally:
                os.close(file)  # an NFS client writes it back now
        self._parts[folder] = part, now

    def clean(self) -> int:
        """Remove what is old, or too much; how many files that were. For the lease's holder.

        Age is the time since this process first saw a file as it is: no other clock counts.

        Raises:
            OSError: the folder cannot be used.
        """
        now = self._clock()
        try:
            with opened(self._root, REMOVED_FOLDER) as folder:
                self._look(folder, now)
                old = self._too_many(now)
                refused: OSError | None = None
                for name in old:
                    try:
                        os.unlink(name, dir_fd=folder)
                    except FileNotFoundError:
                        pass
                    except OSError as error:  # another user's, perhaps; the others go
                        refused = refused or error
                    del self._seen[name]
                if refused is not None:
                    raise refused
                return len(old)
        except FileNotFoundError:
            return 0

    def _look(self, folder: int, now: float) -> None:
        seen = {}
        for name in os.listdir(folder):
            if parse_removed_name(name) is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
                before = self._seen.get(name)
                seen[name] = before if before and before[0] == size else (size, now)
        self._seen = seen

    def _too_many(self, now: float) -> list[str]:
        total = sum(size for size, _ in self._seen.values())
        gone = []
        for name, (size, since) in sorted(self._seen.items(), key=lambda item: item[1][1]):
            if now - since < KEEP_SECONDS and total <= TOTAL_BYTES_MAX:
                break
            gone.append(name)
            total -= size
        return gone


class RemovedReader:
    """Reads what evictors on any host append for one namespace. One thread.

    What was there before the first ``read`` is left out: nobody knew anything then.

    Attributes:
        damaged: files that hold something else than records; they are not read on.
    """

    def __init__(self, root: str | os.PathLike[str], folder: str) -> None:
        self._root = Path(root)
        self._prefix = f"{folder}-"
        self._offsets: dict[str, int] | None = None
        self._left_alone: set[str] = set()
        self.damaged = 0

    def read(self) -> list[bytes]:
        """Keys that were appended since the last call, a megabyte at most, each once.

        Raises:
            OSError: the folder cannot be read.
        """
        known, begins = self._offsets, self._offsets is None
        keys: dict[bytes, None] = {}
        offsets: dict[str, int] = {}
        room = READ_BYTES_MAX
        try:
            with opened(self._root, REMOVED_FOLDER) as folder:
                for name in self._names(folder):
                    file = open_file(folder, name, os.O_RDONLY)
                    if file is None:
                        continue
                    try:
                        size = os.fstat(file).st_size
                        offset = size if begins else (known or {}).get(name, 0)
                        if offset < size and room > 0:
                            data = os.pread(file, min(room, size - offset), offset)
                            room -= len(data)
                            offset += self._parse(name, data, offset == 0, keys)
                        offsets[name] = offset
                    finally:
                        os.close(file)
        except FileNotFoundError:
            pass
        self._offsets = offsets
        self._left_alone.intersection_update(offsets)
        return list(keys)

    def _names(self, folder: int) -> Iterator[str]:
        for name in os.listdir(folder):
            if name.startswith(self._prefix) and parse_removed_name(name) is not None:
                yield name

    def _parse(self, name: str, data: bytes, is_first: bool, keys: dict[bytes, None]) -> int:
        """Whole records go into ``keys``; returns the bytes that they take."""
        if name in self._left_alone:
            return len(data)
        at = 0
        if is_first:
            if len(data) < len(MAGIC):
                return 0
            at = len(MAGIC)
        is_sound = not is_first or data.startswith(MAGIC)
        while is_sound and at < len(data):
            length = data[at]
            is_sound = _KEY_BYTES_MIN <= length <= KEY_BYTES_MAX
            if at + 1 + length > len(data):
                break
            if is_sound:
                keys[data[at + 1 : at + 1 + length]] = None
                at += 1 + length
        if is_sound:
            return at
        self._left_alone.add(name)
        self.damaged += 1
        return len(data)
