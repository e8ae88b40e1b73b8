"""Verifies one chunk file: opened so that nobody sees that it was read, judged by the native core.

One thread an object; reading
and hashing release the GIL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from kvshelf.core import native as _native
from kvshelf.disk.tree import GONE, unlink_if_same
from kvshelf.disk.usetime import last_use
from kvshelf.upkeep.scrub.mount import Mount
from kvshelf.upkeep.scrub.pace import Pace

# Of one read: large enough for any storage, small enough to be paced.
STEP_BYTES = 1 << 20


class Verdict(IntEnum):
    """What a file is. The first seven are those of native/include/kvshelf/chunk_verifier.h."""

    SOUND = 0
    PADDING = 1
    CORRUPT = 2
    VERSION = 3
    MISPLACED = 4
    FAULT = 5
    SEALED = 6  # the header is right; the payload can be judged with its key alone
    UNSTEADY = 7  # bad when first read, not when read again
    UNREADABLE = 8  # no permission, or reading would mark it as used
    FOREIGN = 9  # no regular file
    GONE = 10  # removed or replaced meanwhile

    @property
    def bad(self) -> bool:
        """Whether no reader would take the file."""
        return self in (Verdict.CORRUPT, Verdict.MISPLACED)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file's path says: see ``ExpectedChunk`` in chunk_verifier.h.

    Attributes:
        namespace_start: the namespace's digest, or its first bytes; at most 32.
        authenticated: whether the namespace's chunks carry tags; None if that is not known.
        use_key: whether the verifier's key is the one that they are made with.
    """

    namespace_start: bytes
    key: bytes
    rank: int
    authenticated: bool | None = None
    use_key: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    Attributes:
        reason: what is wrong with it, in words.
        removed: whether the name was taken away.
    """

    verdict: Verdict
    reason: str = ""
    removed: bool = False


class FileVerifier:
    """Verifies chunk files at a pace.

    Args:
        auth_key: the secret of ``auth_key_file``, or nothing.

    Attributes:
        bytes_read: of all files so far.
    """

    def __init__(self, mount: Mount, pace: Pace, auth_key: bytes = b"") -> None:
        self._mount, self._pace = mount, pace
        self._native = _native.ChunkVerifier(STEP_BYTES, auth_key)
        self.bytes_read = 0

    def check(self, folder: int, name: str, expected: Expected, *, remove: bool) -> Outcome:
        """Verify a file, given its folder's descriptor, and remove it if it is bad.

        A bad file is opened and read a second time first. Never raises for the storage's faults.
        """
        self._pace.spend(files=1)
        try:
            with self._opened(folder, name) as (file, seen):
                first = self._judge(file, seen, expected)
                if not first.verdict.bad:
                    return first
                second = self._look_again(folder, name, expected, seen, first)
                if not (second.verdict.bad and remove):
                    return second
                # The first descriptor is still open: its inode is nobody else's.
                return _removed(folder, name, seen, second)
        except OSError as error:
            return _outcome_of(error)

    def _look_again(
        self, folder: int, name: str, expected: Expected, seen: os.stat_result, first: Outcome
    ) -> Outcome:
        """A second opinion on a bad file: memory and networks damage bytes too."""
        with self._opened(folder, name) as (file, seen_now):
            if not os.path.samestat(seen, seen_now):
                return Outcome(Verdict.GONE)
            second = self._judge(file, seen_now, expected)
        if second.verdict in (Verdict.SOUND, Verdict.PADDING):
            return Outcome(Verdict.UNSTEADY, f"when it was read first: {first.reason}")
        return second

    @contextlib.contextmanager
    def _opened(self, folder: int, name: str) -> Iterator[tuple[int, os.stat_result]]:
        # Looked at before: to open a device may do something.
        seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(seen.st_mode):
            raise OSError(errno.ELOOP, "no regular file")
        file = self._open(folder, name)
        try:
            seen = os.fstat(file)
            if not stat.S_ISREG(seen.st_mode):
                raise OSError(errno.ELOOP, "no regular file")
            yield file, seen
            self._put_back_access_time(file, seen)
        finally:
            os.close(file)

    def _open(self, folder: int, name: str) -> int:
        base = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        # Only a file's owner may read it without a trace; without O_DIRECT the core reads so that
        # the page cache stays as it was.
        quiet = [os.O_NOATIME] if self._mount.reads_mark else [os.O_NOATIME, 0]
        for flags in quiet:
            for direct in (os.O_DIRECT, 0):
                try:
                    return os.open(name, base | flags | direct, dir_fd=folder)
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                        raise
        raise OSError(errno.EPERM, "it is another user's, and reading it would mark it as used")

    def _put_back_access_time(self, file: int, seen: os.stat_result) -> None:
        """Where the file system marks a file as read whatever we say, and the access time says when
        it was used, because an older kvshelf touched it. Another such touch of the moment in
        between is lost, as it is anywhere without a call that compares."""
        if not self._mount.quiet_reads_mark or last_use(seen).ns == seen.st_mtime_ns:
            return
        now = os.fstat(file)
        if now.st_atime_ns != seen.st_atime_ns and now.st_mtime_ns == seen.st_mtime_ns:
            os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))

    def _judge(self, file: int, seen: os.stat_result, expected: Expected) -> Outcome:
        done = self._native.begin(
            file,
            seen.st_size,
            expected.namespace_start,
            expected.key,
            expected.rank,
            expected.authenticated,
            expected.use_key,
        )
        spent = 0
        while True:
            verdict, error, reason, read = self._native.result()
            self._pace.spend(read_bytes=read - spent)
            spent = read
            if done:
                break
            done = self._native.step()
        self.bytes_read += read
        if error in GONE or os.fstat(file).st_nlink == 0:
            return Outcome(Verdict.GONE)
        return Outcome(Verdict(verdict), reason)


def _removed(folder: int, name: str, seen: os.stat_result, outcome: Outcome) -> Outcome:
    """A bad file that cannot be removed is bad all the same."""
    try:
        removed = unlink_if_same(folder, name, seen)
    except OSError as error:
        return replace(outcome, reason=f"{outcome.reason}; cannot be removed: {error.strerror}")
    return replace(outcome, removed=True) if removed else Outcome(Verdict.GONE)


def _outcome_of(error: OSError) -> Outcome:
    reason = error.strerror or str(error)
    if error.errno in GONE:
        return Outcome(Verdict.GONE)
    if error.errno in (errno.ELOOP, errno.ENXIO):
        return Outcome(Verdict.FOREIGN, "not a regular file")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Outcome(Verdict.UNREADABLE, reason)
    return Outcome(Verdict.FAULT, reason)
