"""Digests of weight files, kept beside what the file system says of each, so that a node pays once.

A digest counts only while device, inode, size, mtime and ctime are equal and the machine has not
been booted since. A file that changed less than ``RACY_SECONDS`` before it was read is never kept:
within one tick of a file system's clock, a second change leaves no trace (git's index has the same
rule). Whatever is odd about the cache means that the files are hashed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from kvshelf.config import Settings

# Below vLLM's logger, which has its format and level; elsewhere the root's apply.
logger = logging.getLogger(f"vllm.{__name__}")

RACY_SECONDS = 5.0
_VERSION = 1
# A cache of 1,000 files has 200 KB; nothing larger is read.
_FILE_BYTES_MAX = 16 << 20
_POLL_SECONDS = 0.05
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes whenever a file's content does."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    def is_racy(self, now_ns: int) -> bool:
        """Whether the file changed so lately, or in the future, that it may change unseen."""
        return max(self.mtime_ns, self.ctime_ns) > now_ns - int(RACY_SECONDS * 1e9)


class WeightCache:
    """The kept digests of one set of files. Use ``of``.

    Without a folder nothing is kept: every process hashes for itself.
    """

    def __init__(self, folder: Path | None, name: str, wait_seconds: float) -> None:
        self._folder, self._name = folder, name
        self._wait_seconds = wait_seconds
        self._begun_ns = time.time_ns()

    @classmethod
    def of(cls, settings: Settings, paths: Sequence[str]) -> WeightCache:
        """The cache in this user's folder; a folder that cannot be used is said in the log."""
        name = hashlib.sha256("\n".join(paths).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        wanted = _folder_of(settings)
        folder = None if wanted is None else _private(wanted)
        if folder is not None and not _boot():
            logger.info("kvshelf: no digests of weights are cached: %s is not readable", _BOOT_ID)
            folder = None
        return cls(folder, name, settings.weights_wait_seconds)

    def read(self, stamps: Sequence[Stamp]) -> list[str]:
        """The digest of each file, "" where none is known for certain."""
        if self._folder is None:
            return [""] * len(stamps)
        kept = _read_entries(self._folder / f"{self._name}.json")
        return [kept.get(_key(stamp), "") for stamp in stamps]

    def write(self, stamps: Sequence[Stamp], digests: Sequence[str]) -> None:
        """Keep the digests of files that did not change shortly before they were read."""
        if self._folder is None:
            return
        entries = {
            _key(stamp): digest
            for stamp, digest in zip(stamps, digests, strict=True)
            if not stamp.is_racy(self._begun_ns)
        }
        if not entries:
            return
        try:
            _publish(self._folder / f"{self._name}.json", _with_sum(entries))
        except OSError as error:
            logger.info("kvshelf: digests of weights cannot be cached: %s", error)

    @contextlib.contextmanager
    def turn(self, stamps: Sequence[Stamp]) -> Iterator[None]:
        """Wait while another process of this user hashes the same files, up to the setting.

        Not for files whose digests cannot be kept: then waiting is of no use.
        """
        if self._folder is None or any(stamp.is_racy(self._begun_ns) for stamp in stamps):
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(self._folder / f"{self._name}.lock", flags, 0o600)
                stack.callback(os.close, descriptor)
                _lock(descriptor, self._wait_seconds)
            except OSError as error:
                logger.info("kvshelf: weights are hashed without a turn: %s", error)
            yield


def _lock(descriptor: int, wait_seconds: float) -> None:
    """Take the lock; after the deadline go on without: two processes hash, which is only slow."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)
        else:
            return


def _folder_of(settings: Settings) -> Path | None:
    if settings.weights_cache_dir == "off":
        return None
    if settings.weights_cache_dir:
        return Path(settings.weights_cache_dir)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "kvshelf"
    except RuntimeError:  # no home
        return None


def _private(folder: Path) -> Path | None:
    """The folder if it is this user's alone. It is made if it is not there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        problem = _problem(status, is_kind=stat.S_ISDIR(status.st_mode))
    except OSError as error:
        problem = str(error)
    if problem:
        logger.info("kvshelf: weights are hashed at every start: %s: %s", folder, problem)
        return None
    return folder


def _problem(status: os.stat_result, *, is_kind: bool) -> str:
    if not is_kind:
        return "it is something else"
    if status.st_uid != os.geteuid():
        return "it is another user's"
    if stat.S_IMODE(status.st_mode) & 0o077:
        return "others may use it (0700 is wanted)"
    return ""


def _key(stamp: Stamp) -> str:
    return ":".join(str(number) for number in astuple(stamp))


def _boot() -> str:
    """Device numbers mean something until the next boot; "" where a sandbox hides which it is."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _with_sum(entries: dict[str, str]) -> dict[str, Any]:
    value = {"kvshelf_weights": _VERSION, "boot": _boot(), "files": entries}
    text = json.dumps(value, sort_keys=True)
    return {**value, "sum": hashlib.sha256(text.encode()).hexdigest()}


def _read_entries(path: Path) -> dict[str, str]:
    """What a cache file says; nothing if anything about it is odd."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if _problem(status, is_kind=stat.S_ISREG(status.st_mode)):
                return {}
            value = json.loads(file.read(_FILE_BYTES_MAX))
        entries = dict(value["files"])
        is_whole = value == _with_sum(entries)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return entries if is_whole and all(map(_is_digest, entries.values())) else {}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def _publish(path: Path, value: dict[str, Any]) -> None:
    """Write a file of this user alone, all of it or nothing."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".weights-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
