"""One digest of many large files: every byte is read, several threads at a time.

BLAKE3 of pieces, joined by SHA-256. BLAKE3 hashes 4.6 GB/s a core where SHA-256 hashes 1.6, it is
cryptographic, lets other threads run meanwhile, and vLLM brings it. Files are read, not mapped: a
mapped file that somebody cuts short kills the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kvshelf.config import Settings
from kvshelf.errors import ConfigError
from kvshelf.weights.cache import Stamp, WeightCache

# One thread's work: small enough for 8 threads to share one file of 5 GB, large enough for its
# digest to cost nothing.
PIECE_BYTES = 64 << 20
# Stays in a core's cache between reading and hashing.
_BUFFER_BYTES = 1 << 20
# More do not help: 8 cores hash faster than memory delivers.
_THREADS_MAX = 8
# Without waiting for whoever would write to a pipe of that name.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class FilesDigest:
    """Attributes:
    hex: 64 hex digits.
    how: bytes and speed, or that the digest was cached.
    """

    hex: str
    how: str


def digest_of_files(files: Sequence[tuple[str, Path]], settings: Settings) -> FilesDigest:
    """Hash files by name and content, or find their digests in this user's cache.

    The processes of one node take turns, so that one hashes and the others read its result.

    Args:
        files: name and path of each, in order.

    Raises:
        ConfigError: a file cannot be read, or changes meanwhile.
    """
    stamps = [_stamp(path) for _, path in files]
    cache = WeightCache.of(settings, [str(path) for _, path in files])
    known = cache.read(stamps)
    if all(known):
        return FilesDigest(_join(files, stamps, known), "cached digest")
    with cache.turn(stamps):
        known = cache.read(stamps)
        if all(known):
            return FilesDigest(_join(files, stamps, known), "cached digest")
        begun = time.monotonic()
        todo = [i for i, digest in enumerate(known) if not digest]
        fresh = _hash_all([(files[i][1], stamps[i].size) for i in todo])
        seconds = max(time.monotonic() - begun, 1e-9)
        for i, digest in zip(todo, fresh, strict=True):
            if _stamp(files[i][1]) != stamps[i]:
                raise _changed(files[i][1])
            known[i] = digest
        cache.write(stamps, known)
    size = sum(stamps[i].size for i in todo) / 1e9
    return FilesDigest(
        _join(files, stamps, known), f"{size:.1f} GB hashed at {size / seconds:.1f} GB/s"
    )


def _join(files: Sequence[tuple[str, Path]], stamps: Sequence[Stamp], digests: list[str]) -> str:
    joined = hashlib.sha256()
    for (name, _), stamp, digest in zip(files, stamps, digests, strict=True):
        joined.update(f"{len(name.encode('utf-8', 'surrogateescape'))}:".encode())
        joined.update(name.encode("utf-8", "surrogateescape"))
        joined.update(f":{stamp.size}:{digest}\n".encode())
    return joined.hexdigest()


def _stamp(path: Path) -> Stamp:
    """What the file system says of a file that is opened now: NFS asks its server at an open."""
    with _opened(path) as descriptor:
        status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError("model", str(path), "is no file")
    return Stamp.of(status)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, _READ)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError("model", str(path), f"cannot be read: {error.strerror}") from error


def _hash_all(files: Sequence[tuple[Path, int]]) -> list[str]:
    pieces = [
        (path, offset, min(PIECE_BYTES, size - offset))
        for path, size in files
        for offset in range(0, size, PIECE_BYTES)
    ]
    threads = max(1, min(_THREADS_MAX, os.cpu_count() or 1, len(pieces)))
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="kvshelf-weights") as pool:
            digests = iter(list(pool.map(_hash_piece, pieces)))
    except RuntimeError:  # no thread is to be had: slower, and as right
        digests = iter(list(map(_hash_piece, pieces)))
    joined = []
    for _, size in files:
        whole = hashlib.sha256()
        for _ in range(0, size, PIECE_BYTES):
            whole.update(next(digests))
        joined.append(whole.hexdigest())
    return joined


def _hash_piece(piece: tuple[Path, int, int]) -> bytes:
    from blake3 import blake3  # noqa: PLC0415 - vLLM brings it; nothing else needs it

    path, offset, left = piece
    digest = blake3()
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, left)))
    with _opened(path) as descriptor:
        while left > 0:
            count = _read_into(buffer[: min(left, len(buffer))], descriptor, offset)
            if count == 0:
                raise _changed(path)
            digest.update(buffer[:count])
            offset, left = offset + count, left - count
    return digest.digest()


def _read_into(buffer: memoryview, descriptor: int, offset: int) -> int:
    """Bytes read; 0 at the file's end."""
    try:
        return os.preadv(descriptor, [buffer], offset)
    except OSError:
        # Python's preadv is preadv2(2), which some containers forbid; it copies nothing.
        data = os.pread(descriptor, len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)


def _changed(path: Path) -> ConfigError:
    return ConfigError(
        "model", str(path), "changed while kvshelf hashed it: start the engine once it is complete"
    )
