"""Opens a shelf's root and its namespaces: the marker, who may use a directory, what lies in it.

File-system calls at start only, never on a hot path. Nothing here follows a symbolic link to write.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvshelf.config.rootlist import SETTING
from kvshelf.disk.calls import NO_LINKS, Lock, sync_file, sync_folder, try_lock
from kvshelf.disk.documents import read_json
from kvshelf.disk.junk import is_junk
from kvshelf.disk.layout import (
    MARKER,
    NAMESPACE_FILE,
    ROOT_FOLDERS,
    TEMP_FOLDER,
    temp_name,
)
from kvshelf.disk.namespace import Identity
from kvshelf.disk.owner import Users, explained, make_folder
from kvshelf.disk.proof import others_data
from kvshelf.disk.this_process import this_owner
from kvshelf.errors import ConfigError, NotAShelfError

FORMAT_VERSION = 1
# Taking a namespace away is a rename: tried for 5 s.
_USE_ATTEMPTS, _USE_SECONDS = 50, 0.1


def open_root(
    path: str | os.PathLike[str],
    *,
    dir_mode: int = 0o2770,
    file_mode: int = 0o640,
    durability: str = "none",
) -> Path:
    """Make sure that ``path`` is a shelf, and return it. Several processes may do so at once.

    An absent directory is made (its parent must exist); an empty one becomes a shelf; one with our
    marker is one. The marker is synced, so that it survives a power loss. Where ``durability`` does
    not ask for that, a file system that refuses to sync is no fault.

    Raises:
        ConfigError: not absolute, a file, not writable, on a read-only or full file system; or
            ``durability``, where the file system refuses the sync that it asks for.
        NotAShelfError: it holds data but no marker, or a marker that is damaged, a link or of
            another version.
    """
    root = Path(path)
    if not root.is_absolute() or not is_utf8(root):
        raise ConfigError(SETTING, str(path), "must be an absolute path, in UTF-8")
    try:
        made = make_folder(root, dir_mode)
        if not os.path.lexists(root / MARKER):
            _claim(root, file_mode, durability)
        check_root(root)
        sync_folder(root, durability)  # also if another process has just made it
        if made:
            with contextlib.suppress(PermissionError):  # it may be forbidden to list it
                sync_folder(root.parent, durability)
    except OSError as error:
        raise _unusable(path, error) from error
    reason = why_not_writable(root)
    if reason is not None:
        raise ConfigError(SETTING, str(path), f"is not writable ({reason.strerror})")
    return root


def why_not_writable(folder: str | os.PathLike[str]) -> OSError | None:
    """What keeps this process from making files in a folder; None if nothing does.

    A file is made and removed: access(2) is refused by some containers, and knows nothing of a
    server's own rules. A full file system is writable: eviction makes room there.
    """
    place = Path(folder)
    try:
        descriptor, temp = _new_temp(place, 0o600)
    except OSError as error:
        return None if error.errno in (errno.ENOSPC, errno.EDQUOT) else error
    os.close(descriptor)
    with contextlib.suppress(OSError):  # a scrub does the rest
        temp.unlink()
    return None


def check_root(path: str | os.PathLike[str], dir_fd: int | None = None) -> None:
    """Make sure that the directory carries a marker that we know. Writes nothing. ``dir_fd`` as in
    ``os.open``.

    Raises:
        NotAShelfError: its marker is damaged, a link or of another version.
        OSError: it has none, or it cannot be read.
    """
    marker_path = Path(path) / MARKER
    try:
        marker = read_json(marker_path, dir_fd)
    except ValueError as error:
        raise NotAShelfError(f"{marker_path} is damaged: {error}") from error
    version = marker.get("kvshelf") if isinstance(marker, dict) else None
    if version != FORMAT_VERSION:
        raise NotAShelfError(
            f"{marker_path} says version {version!r}; this kvshelf knows {FORMAT_VERSION}"
        )


def is_shelf(path: str | os.PathLike[str]) -> bool:
    """Whether the directory carries a marker that we know. Writes nothing, raises nothing."""
    try:
        check_root(path)
    except (OSError, ValueError, NotAShelfError):
        return False
    return True


def open_namespace(
    root: Path,
    identity: Identity,
    *,
    dir_mode: int = 0o2770,
    file_mode: int = 0o640,
    durability: str = "none",
) -> Path:
    """Make the namespace's folder if it is not there, and check that it is this identity's.

    ``durability`` is as in ``open_root``.

    Raises:
        NotAShelfError: the folder is a link, or its namespace.json says another digest, is damaged
            or a link.
        ConfigError: it cannot be made.
    """
    folder = root / identity.folder
    try:
        users = Users.of(root)
        for directory in (folder, folder / TEMP_FOLDER):
            make_folder(directory, dir_mode, users)
            if not stat.S_ISDIR(directory.lstat().st_mode):
                raise NotAShelfError(f"{directory} is not a directory of its own, or a link")
        if not os.path.lexists(folder / NAMESPACE_FILE):
            document, temp_folder = identity.to_json(), folder / TEMP_FOLDER
            _publish(
                folder / NAMESPACE_FILE,
                document,
                temp_folder,
                file_mode,
                users=users,
                durability=durability,
            )
        found = Identity.from_json(read_json(folder / NAMESPACE_FILE))
    except OSError as error:
        raise _unusable(folder, explained(root, identity.folder, error)) from error
    except ConfigError:
        raise
    except ValueError as error:
        raise NotAShelfError(f"{folder}/{NAMESPACE_FILE} is damaged: {error}") from error
    if found.digest != identity.digest:
        raise NotAShelfError(f"{folder} belongs to another namespace ({found.digest12})")
    return folder


@dataclass(frozen=True, slots=True)
class NamespaceEntry:
    """A folder of a shelf.

    Attributes:
        folder: its name.
        identity: what its namespace.json says; None if that cannot be read.
        problem: what is wrong with it, in words; "" if nothing is.
        errno: why its namespace.json could not be read; 0 if it could.
    """

    folder: str
    identity: Identity | None
    problem: str = ""
    errno: int = 0


def use_namespace(
    root: Path,
    identity: Identity,
    *,
    dir_mode: int = 0o2770,
    file_mode: int = 0o640,
    durability: str = "none",
) -> int | None:
    """Open a namespace and say that this process uses it for as long as a descriptor is open.

    The descriptor holds a shared lock (flock(2)) on namespace.json, and its times are renewed once:
    ``kvshelf scrub`` removes no namespace that is locked, and none that was used of late. None
    where the file system has no locks. A server of NFS 4 that has just started gives no locks for
    its grace period (RFC 8881, section 8.4.2.1), and a client waits for it in flock(2).

    Raises:
        as ``open_namespace``.
    """
    for _ in range(_USE_ATTEMPTS):
        modes: dict[str, Any] = {"dir_mode": dir_mode, "file_mode": file_mode}
        path = open_namespace(root, identity, **modes, durability=durability)
        path /= NAMESPACE_FILE
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # another user's file: the lock is enough
                os.utime(descriptor)  # first, since the lock may be long in coming, or never come
            lock = try_lock(descriptor, shared=True)
            if lock is Lock.ABSENT:
                _close(descriptor)
                return None
            if lock is Lock.HELD and os.path.samestat(path.lstat(), os.fstat(descriptor)):
                return descriptor
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                _close(descriptor)
                return None
        # It is being removed this moment: then it is made anew.
        _close(descriptor)
        time.sleep(_USE_SECONDS)
    return None


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def list_namespaces(root: Path) -> list[NamespaceEntry]:
    """Every folder that has a namespace.json, by name. Links are not followed; writes nothing.

    Raises:
        OSError: the root cannot be listed.
    """
    entries = []
    with os.scandir(root) as scan:
        folders = sorted(entry.name for entry in scan if entry.is_dir(follow_symlinks=False))
    for name in folders:
        if name in ROOT_FOLDERS or is_junk(name):
            continue
        if (entry := namespace_entry(root, name)) is not None:
            entries.append(entry)
    return entries


def namespace_entry(root: Path, name: str) -> NamespaceEntry | None:
    """What a folder's namespace.json says; None if there is none. Raises nothing."""
    try:
        identity = Identity.from_json(read_json(root / name / NAMESPACE_FILE))
    except FileNotFoundError:
        return None
    except OSError as error:
        return NamespaceEntry(name, None, error.strerror or str(error), error.errno or errno.EIO)
    except ValueError as error:
        return NamespaceEntry(name, None, str(error))
    moved = "" if name == identity.folder else f"it is of the folder {identity.folder}"
    return NamespaceEntry(name, identity, moved)


def _claim(root: Path, file_mode: int, durability: str) -> None:
    """Write the marker into an empty directory; losing the race to another process is fine."""
    name = others_data(root)
    if name is not None:
        if os.path.lexists(root / MARKER):
            return  # another process was faster, and what lies here may be its namespace
        raise NotAShelfError(
            f"{SETTING}={str(root)!r}: the directory holds other data ({name!r}) and no "
            f"{MARKER}; give kvshelf an empty directory of its own"
        )
    publish_marker(root, file_mode, durability)


def publish_marker(root: Path, file_mode: int = 0o640, durability: str = "none") -> None:
    """Say that a directory is a shelf; a marker that is there stays.

    Raises:
        OSError: it cannot be written.
    """
    document = {"kvshelf": FORMAT_VERSION}
    _publish(root / MARKER, document, root, file_mode, users=Users.of(root), durability=durability)


def _new_temp(folder: Path, mode: int) -> tuple[int, Path]:
    """A new temp file, open for writing."""
    owner = this_owner()
    for count in itertools.count(int.from_bytes(os.urandom(4), "big")):
        # A dot in front: another process may be looking whether the directory is empty.
        temp = folder / f".{temp_name(owner, count)}"
        with contextlib.suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return os.open(temp, flags, mode), temp
    raise AssertionError("the counter does not end")


def _publish(
    path: Path, value: Any, temp_folder: Path, file_mode: int, *, users: Users, durability: str
) -> None:
    """Write JSON under a temp name and link it into place; a file that is there stays."""
    descriptor, temp = _new_temp(temp_folder, file_mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            users.give(file.fileno(), file_mode)
            json.dump(value, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            sync_file(file.fileno(), path, durability)
        try:
            os.link(temp, path, follow_symlinks=False)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            # A file system without links: a rename may replace an equal file of another process.
            temp.rename(path)
    finally:
        temp.unlink(missing_ok=True)


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether the native core can have it. Linux takes any bytes, Python escapes those that are no
    UTF-8 (PEP 383)."""
    try:
        return b"\0" not in os.fspath(path).encode()
    except UnicodeEncodeError:
        return False


def _unusable(path: str | os.PathLike[str], error: OSError) -> ConfigError:
    if error.errno == errno.ENOENT:
        advice = "its parent directory must exist"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "it needs room for a few small files at least"
    else:
        advice = "it must be a directory that this process may write to"
    return ConfigError(SETTING, str(path), f"cannot be used ({error.strerror}): {advice}")
