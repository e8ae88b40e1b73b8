"""Opens a shelf's root and its namespaces: the marker, who may use a directory, what lies in it.

File-system calls at start only, never on a hot path. Nothing here follows a symbolic link to write.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvshelf.errors import ConfigError, NotAShelfError
from kvshelf.layout import MARKER, NAMESPACE_FILE, TEMP_FOLDER, TempOwner, safe_host, temp_name
from kvshelf.namespace import Identity

SETTING = "shared_storage_path"
FORMAT_VERSION = 1
# Entries that a file system or its operator puts into an empty directory.
_IGNORED = frozenset({"lost+found"})
_MARKER_BYTES_MAX = 1 << 20


def open_root(path: str | os.PathLike[str], *, dir_mode: int = 0o2770) -> Path:
    """Make sure that ``path`` is a shelf, and return it. Several processes may do so at once.

    An absent directory is made (its parent must exist); an empty one becomes a shelf; one with our
    marker is one.

    Raises:
        ConfigError: not absolute, a file, not writable, on a read-only or full file system.
        NotAShelfError: it holds data but no marker, or the marker of a later version.
    """
    root = Path(path)
    if not str(path) or not root.is_absolute():
        raise ConfigError(SETTING, str(path), "must be an absolute path")
    try:
        root.mkdir(mode=dir_mode, exist_ok=True)
    except FileExistsError:
        raise ConfigError(SETTING, str(path), "is not a directory") from None
    except OSError as error:
        raise _unusable(path, error) from error
    if not root.is_dir():
        raise ConfigError(SETTING, str(path), "is not a directory")
    try:
        if not (root / MARKER).exists():
            _claim(root)
        marker = _read_json(root / MARKER)
    except OSError as error:
        raise _unusable(path, error) from error
    version = marker.get("kvshelf") if isinstance(marker, dict) else None
    if version != FORMAT_VERSION:
        raise NotAShelfError(
            f"{root}/{MARKER} says version {version!r}; this kvshelf knows {FORMAT_VERSION}"
        )
    if not os.access(root, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(SETTING, str(path), "is not writable")
    return root


def is_shelf(path: str | os.PathLike[str]) -> bool:
    """Whether the directory carries a marker that we know. Writes nothing."""
    try:
        marker = _read_json(Path(path) / MARKER)
    except OSError:
        return False
    return isinstance(marker, dict) and marker.get("kvshelf") == FORMAT_VERSION


def open_namespace(root: Path, identity: Identity, *, dir_mode: int = 0o2770) -> Path:
    """Make the namespace's folder if it is not there, and check that it is this identity's.

    Raises:
        NotAShelfError: the folder's namespace.json says another digest, or is damaged.
        ConfigError: it cannot be made.
    """
    folder = root / identity.folder
    try:
        for directory in (folder, folder / TEMP_FOLDER):
            directory.mkdir(mode=dir_mode, exist_ok=True)
        if not (folder / NAMESPACE_FILE).exists():
            _publish(folder / NAMESPACE_FILE, identity.to_json(), folder / TEMP_FOLDER)
        found = Identity.from_json(_read_json(folder / NAMESPACE_FILE))
    except OSError as error:
        raise _unusable(folder, error) from error
    except ValueError as error:
        raise NotAShelfError(f"{folder}/{NAMESPACE_FILE}: {error}") from error
    if found.digest != identity.digest:
        raise NotAShelfError(f"{folder} belongs to another namespace ({found.digest12})")
    return folder


@dataclass(frozen=True, slots=True)
class NamespaceEntry:
    """A folder of a shelf: its identity, or what is wrong with its namespace.json."""

    folder: str
    identity: Identity | None
    problem: str = ""


def list_namespaces(root: Path) -> list[NamespaceEntry]:
    """Every folder that has a namespace.json, by name. Links are not followed."""
    entries = []
    with os.scandir(root) as scan:
        folders = sorted(entry.name for entry in scan if entry.is_dir(follow_symlinks=False))
    for name in folders:
        path = root / name / NAMESPACE_FILE
        try:
            entries.append(NamespaceEntry(name, Identity.from_json(_read_json(path))))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            entries.append(NamespaceEntry(name, None, str(error)))
    return entries


def this_host() -> str:
    return safe_host(socket.gethostname())


def this_boot() -> str:
    """First 8 hex digits of the kernel's boot id (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").replace("-", "")[:8]


def start_ticks_of(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc_pid_stat(5), field 22), or None."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The second field is the name in parentheses, which may itself hold spaces and parentheses.
    return int(stat.rpartition(")")[2].split()[19])


def this_owner() -> TempOwner:
    """This process, as the owner of temp files."""
    pid = os.getpid()
    return TempOwner(this_host(), this_boot(), pid, start_ticks_of(pid) or 0)


def _claim(root: Path) -> None:
    """Write the marker into an empty directory; losing the race to another process is fine."""
    for name in sorted(entry.name for entry in root.iterdir()):
        if name not in _IGNORED and not name.startswith("."):
            raise NotAShelfError(
                f"{SETTING}={str(root)!r}: the directory holds other data ({name!r}) and no "
                f"{MARKER}; give kvshelf an empty directory of its own"
            )
    _publish(root / MARKER, {"kvshelf": FORMAT_VERSION}, root)


def _publish(path: Path, value: Any, temp_folder: Path) -> None:
    """Write JSON under a temp name and link it into place; a file that is there stays."""
    owner = this_owner()
    for count in itertools.count(int.from_bytes(os.urandom(4), "big")):
        # A dot in front: another process may be looking whether the directory is empty.
        temp = temp_folder / f".{temp_name(owner, count)}"
        try:
            descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            break
        except FileExistsError:
            continue
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
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


def _read_json(path: Path) -> Any:
    """Parse a small JSON file that is no link.

    Raises:
        OSError: it cannot be read. ValueError: it is not JSON, or larger than 1 MiB.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_MARKER_BYTES_MAX + 1)
    if len(data) > _MARKER_BYTES_MAX:
        raise ValueError("larger than 1 MiB")
    return json.loads(data)


def _unusable(path: str | os.PathLike[str], error: OSError) -> ConfigError:
    return ConfigError(
        SETTING,
        str(path),
        f"cannot be used ({error.strerror}): it must be a writable directory, or one whose parent "
        "directory exists",
    )
