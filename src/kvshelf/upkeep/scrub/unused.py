"""Namespaces that no engine has used for long: found, and taken away. One thread.

Used means: an engine holds its lock (``disk.root.use_namespace``) for as long as it lives, or
one was started, stored or touched something of late, as the times of files and folders say. Where
locks do not reach from one node to another the times alone tell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

from kvshelf.disk.calls import Lock, try_lock
from kvshelf.disk.layout import NAMESPACE_FILE, TEMP_FOLDER, doomed_name
from kvshelf.disk.tree import GONE, folder_at
from kvshelf.disk.usetime import last_use
from kvshelf.disk.walk import Found, What, walk
from kvshelf.upkeep.scrub.findings import Action, Finding, Kind
from kvshelf.upkeep.scrub.pace import Pace

# A look at a file's times is so much cheaper than reading it.
_LOOK = 0.1
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


class _InUseError(Exception):
    """An engine has it, or had it of late."""


class UnusedNamespaces:
    """Takes unused namespaces away.

    Args:
        now: of the file system's clock.
        age_seconds: without use after which a namespace goes.
    """

    def __init__(self, now: float, age_seconds: float, pace: Pace, *, dry_run: bool) -> None:
        self._oldest, self._days = now - age_seconds, age_seconds / 86_400
        self._pace, self._dry_run = pace, dry_run

    def judge(self, root: int, name: str) -> Iterator[Finding]:
        """A namespace's folder: a finding if it is unused. If it is removed it is renamed first,
        at once, and then emptied."""
        detail = f"not used for {self._days:g} days"
        try:
            with folder_at(root, name) as folder:
                with _locked(folder):
                    pass  # no engine has it: the long look is worth while
                if not self._all_old_and_ours(folder, name):
                    yield Finding(Kind.UNUSED, name, f"{detail}, but not all in it is kvshelf's")
                    return
                if self._dry_run:
                    yield Finding(Kind.UNUSED, name, detail, Action.WOULD_REMOVE)
                    return
                # Renamed while no engine can begin to use it; one that waits makes it anew.
                with _locked(folder):
                    self._check_old(folder, NAMESPACE_FILE)
                    self._check_old(folder, TEMP_FOLDER)
                    gone = doomed_name(name, secrets.token_hex(4))
                    os.rename(name, gone, src_dir_fd=root, dst_dir_fd=root)
        except _InUseError:
            return
        except OSError as error:
            if error.errno not in GONE:
                yield Finding(Kind.FAULT, name, error.strerror or str(error))
            return
        yield Finding(Kind.UNUSED, name, detail, Action.REMOVED)
        yield from self.empty(root, gone)

    def empty(self, root: int, gone: str) -> Iterator[Finding]:
        """Delete what ``judge`` renamed; also what a scrub that was killed left. Entries that are
        not kvshelf's, or that cannot be removed, stay and keep the folder; the rest goes."""
        name = gone.removeprefix(".removed-").rpartition("-")[0]
        refused: dict[str, list[str]] = {}  # paths by reason
        try:
            with folder_at(root, gone) as folder:
                for found in walk(folder, name):
                    path = f"{gone}/{found.path.partition('/')[2]}"
                    if found.what is What.FOREIGN:
                        yield Finding(Kind.FOREIGN, path, "not kvshelf's")
                    elif reason := self._refusal(found):
                        refused.setdefault(reason, []).append(path)
            os.rmdir(gone, dir_fd=root)
        except OSError as error:
            if error.errno not in (*GONE, *_NOT_EMPTY):
                yield Finding(Kind.FAULT, gone, error.strerror or str(error))
        for reason, paths in refused.items():
            detail = reason if len(paths) == 1 else f"{reason}, as for {len(paths) - 1} others"
            yield Finding(Kind.FAULT, paths[0], detail)

    def _refusal(self, found: Found) -> str:
        """Remove an entry; why that is refused, or nothing."""
        try:
            if found.error is not None:
                raise found.error
            if found.what is What.FOLDER:
                os.rmdir(found.name, dir_fd=found.folder)
            else:
                self._pace.spend(files=1)
                os.unlink(found.name, dir_fd=found.folder)
        except OSError as error:
            if error.errno not in (*GONE, *_NOT_EMPTY):
                return error.strerror or str(error)
        return ""

    def _all_old_and_ours(self, folder: int, name: str) -> bool:
        """Raises _InUseError at the first entry that was used of late."""
        for first in (NAMESPACE_FILE, TEMP_FOLDER):
            self._check_old(folder, first)
        ours = True
        for found in walk(folder, name):
            if found.error is not None:
                raise found.error
            if found.what is What.FOREIGN:
                ours = False
                continue
            self._pace.spend(files=_LOOK)
            self._check_old(found.folder, found.name)
        return ours

    def _check_old(self, folder: int, name: str) -> None:
        try:
            seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        # An access time that no touch has set says that somebody read the file or listed the
        # folder: a backup, or ourselves.
        used_ns = seen.st_mtime_ns
        if not stat.S_ISDIR(seen.st_mode):
            used_ns = max(used_ns, last_use(seen).ns)
        if 1e-9 * used_ns > self._oldest:
            raise _InUseError


@contextlib.contextmanager
def _locked(folder: int) -> Iterator[None]:
    """Holds a namespace's lock alone, if the file system has locks.

    Raises:
        _InUseError: an engine has it; or there is no namespace.json, so that nobody can tell.
        OSError: namespace.json cannot be opened.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            # NFS wants a descriptor that may write for a lock of one's own.
            descriptor = os.open(NAMESPACE_FILE, os.O_RDWR | flags, dir_fd=folder)
        except PermissionError:
            descriptor = os.open(NAMESPACE_FILE, os.O_RDONLY | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (*GONE, errno.ELOOP):
            raise _InUseError from error
        raise
    try:
        # Without locks the times tell, as docs/howto/verify.md has it.
        if try_lock(descriptor, shared=False) is Lock.TAKEN:
            raise _InUseError
        yield
    finally:
        os.close(descriptor)
