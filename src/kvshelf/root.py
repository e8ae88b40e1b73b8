"""Opens a shelf's root and its namespaces: the marker, who may use a directory, what lies in it.

File-system calls at start only, never on a hot path. Nothing here follows a symbolic link to write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvshelf.documents import read_json
from kvshelf.errors import ConfigError, NotAShelfError
from kvshelf.junk import is_junk
from kvshelf.layout import (
    MARKER,
    NAMESPACE_FILE,
    ROOT_FOLDERS,
    TEMP_FOLDER,
    TempOwner,
    safe_host,
    temp_name,
)
from kvshelf.namespace import Identity
from kvshelf.owner import Users, explained, make_folder
from kvshelf.proof import others_data
from kvshelf.rootlist import SETTING

FORMAT_VERSION = 1
# Taking a namespace away is a rename: tried for 5 s.
_USE_ATTEMPTS, _USE_SECONDS = 50, 0.1


def open_root(
    path: str | os.PathLike[str], *, dir_mode: int = 0o2770, file_mode: int = 0o640
) -> Path:
    """Make sure that ``path`` is a shelf, and return it. Several processes may do so at once.

    An absent directory is made (its parent must exist); an empty one becomes a shelf; one with our
    marker is one. The marker survives a power loss: without it, what is stored would be refused as
    other data.

    Raises:
        ConfigError: not absolute, a file, not writable, on a read-only or full file system.
        NotAShelfError: it holds data but no marker, or a marker that is damaged, a link or of
            another version.
    """
    root = Path(path)
    if not root.is_absolute() or not is_utf8(root):
        raise ConfigError(SETTING, str(path), "must be an absolute path, in UTF-8")
    try:
        made = make_folder(root, dir_mode)
        if not os.path.lexists(root / MARKER):
            _claim(root, file_mode)
        check_root(root)
        _sync_folder(root)  # also if another process has just made it
        if made:
            with contextlib.suppress(PermissionError):  # it may be forbidden to list it
                _sync_folder(root.parent)
    except OSError as error:
        raise _unusable(path, error) from error
    if not os.access(root, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(SETTING, str(path), "is not writable")
    return root


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
    root: Path, identity: Identity, *, dir_mode: int = 0o2770, file_mode: int = 0o640
) -> Path:
    """Make the namespace's folder if it is not there, and check that it is this identity's.

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
            document = identity.to_json()
            _publish(folder / NAMESPACE_FILE, document, folder / TEMP_FOLDER, file_mode, users)
        found = Identity.from_json(read_json(folder / NAMESPACE_FILE))
    except OSError as error:
        raise _unusable(folder, explained(root, identity.folder, error)) from error
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
    root: Path, identity: Identity, *, dir_mode: int = 0o2770, file_mode: int = 0o640
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
        path = open_namespace(root, identity, dir_mode=dir_mode, file_mode=file_mode)
        path /= NAMESPACE_FILE
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # another user's file: the lock is enough
                os.utime(descriptor)  # first, since the lock may be long in coming, or never come
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.path.samestat(path.lstat(), os.fstat(descriptor)):
                return descriptor
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT, errno.ESTALE):
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
        try:
            identity = Identity.from_json(read_json(root / name / NAMESPACE_FILE))
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = error.strerror or str(error)
            entries.append(NamespaceEntry(name, None, problem, error.errno or errno.EIO))
        except ValueError as error:
            entries.append(NamespaceEntry(name, None, str(error)))
        else:
            moved = "" if name == identity.folder else f"it is of the folder {identity.folder}"
            entries.append(NamespaceEntry(name, identity, moved))
    return entries


def this_host() -> str:
    return safe_host(socket.gethostname())


def this_boot() -> str:
    """First 8 hex digits of the kernel's boot id (random(4)); zeros where a sandbox hides it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").replace("-", "")[:8]
    except OSError:
        return "0" * 8


def this_pid_namespace() -> int:
    """Inode of this process's PID namespace (pid_namespaces(7)); 0 where a sandbox hides it."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def start_ticks_of(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc_pid_stat(5), field 22), or None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The second field is the name in parentheses, which may itself hold spaces and parentheses.
    return int(fields.rpartition(")")[2].split()[19])


def this_owner() -> TempOwner:
    """This process, as the owner of temp files."""
    pid = os.getpid()
    return TempOwner(this_host(), this_boot(), this_pid_namespace(), pid, start_ticks_of(pid) or 0)


def _sync_folder(path: Path) -> None:
    """Make the names in a folder last; nothing where the file system knows no fsync of folders."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def _claim(root: Path, file_mode: int) -> None:
    """Write the marker into an empty directory; losing the race to another process is fine."""
    name = others_data(root)
    if name is not None:
        if os.path.lexists(root / MARKER):
            return  # another process was faster, and what lies here may be its namespace
        raise NotAShelfError(
            f"{SETTING}={str(root)!r}: the directory holds other data ({name!r}) and no "
            f"{MARKER}; give kvshelf an empty directory of its own"
        )
    publish_marker(root, file_mode)


def publish_marker(root: Path, file_mode: int = 0o640) -> None:
    """Say that a directory is a shelf; a marker that is there stays.

    Raises:
        OSError: it cannot be written.
    """
    _publish(root / MARKER, {"kvshelf": FORMAT_VERSION}, root, file_mode, Users.of(root))


def _publish(path: Path, value: Any, temp_folder: Path, file_mode: int, users: Users) -> None:
    """Write JSON under a temp name and link it into place; a file that is there stays."""
    owner = this_owner()
    for count in itertools.count(int.from_bytes(os.urandom(4), "big")):
        # A dot in front: another process may be looking whether the directory is empty.
        temp = temp_folder / f".{temp_name(owner, count)}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(temp, flags, file_mode)
            break
        except FileExistsError:
            continue
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            users.give(file.fileno(), file_mode)
            json.dump(value, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temp, path, follow_symlinks=False)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
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
