"""Names under a shelf's root: the only module that knows them. Pure; see docs/layout.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kvshelf.disk.keys import ChunkKey, group_of, make_key

MARKER = "kvshelf.json"
NAMESPACE_FILE = "namespace.json"
TEMP_FOLDER = "tmp"
# Of the root: what `kvshelf doctor --peer` says to another node; there only meanwhile.
DOCTOR_FOLDER = "doctor"
CHUNK_SUFFIX = ".kv"
SCRUB_CURSOR = "kvshelf-scrub.json"
# Regular files of ours in the root; temp files, with a dot in front, come besides.
ROOT_FILES = frozenset({MARKER, SCRUB_CURSOR})
# Folders of the root beside namespaces: who evicts, and what was evicted.
EVICT_FOLDER = "evict"
REMOVED_FOLDER = "removed"
# How a journal of removed chunks begins.
REMOVED_MAGIC = b"kvshelf removed 1\n"
ROOT_FOLDERS = frozenset({DOCTOR_FOLDER, EVICT_FOLDER, REMOVED_FOLDER})
# Three hex digits: 4,096 folders keep each below 3,000 files at 10 million chunks.
FOLDER_DIGITS = 3

# What kvshelf.disk.namespace.Identity.folder makes: no first dot, a digest at the end.
_FOLDER = re.compile(r"(?!\.)[A-Za-z0-9._]{1,64}-[0-9a-f]{12}")
# ASCII digits: \d alone also matches those of other scripts.
_CHUNK = re.compile(r"r(\d{1,9})/([0-9a-f]{3})/([0-9a-f]{16,248})-g(\d{1,10})\.kv", flags=re.ASCII)
_CHUNK_NAME = re.compile(r"([0-9a-f]{16,248})-g(0|[1-9]\d{0,9})\.kv", flags=re.ASCII)
_RANK_FOLDER = re.compile(r"r(0|[1-9]\d{0,8})", flags=re.ASCII)
_HASH_FOLDER = re.compile(r"[0-9a-f]{3}")
_DOOMED = re.compile(r"\.removed-(?P<folder>.+)-[0-9a-f]{8}")
# Where the boot id cannot be read. Earlier versions had no digits there.
UNKNOWN_BOOT = "0" * 8
_OWNER = (
    r"(?P<host>[A-Za-z0-9._-]{1,64})-(?P<boot>[0-9a-f]{8}|)-(?P<pids>\d{1,20})-(?P<pid>\d{1,9})-"
    r"(?P<start>\d{1,20})"
)
_TEMP = re.compile(rf"{_OWNER}-(?P<count>\d{{1,20}})\.tmp", flags=re.ASCII)
_LEASE = re.compile(
    rf"lease-(?P<term>\d{{10}})-(?P<beat>\d{{10}})-(?P<token>[0-9a-f]{{16}})-(?:free|{_OWNER})",
    flags=re.ASCII,
)
_ROOM = re.compile(r"room-(?P<count>\d{10})", flags=re.ASCII)
_REMOVED = re.compile(
    r"(?P<folder>[A-Za-z0-9._]{1,64}-[0-9a-f]{12})-(?P<token>[0-9a-f]{16})-(?P<part>\d{1,10})\.keys",
    flags=re.ASCII,
)


def is_namespace_folder(name: str) -> bool:
    """Whether a folder of the root may be a namespace's, by its name."""
    return _FOLDER.fullmatch(name) is not None


def short_digest(folder: str) -> bytes:
    """The first 6 bytes of the digest of a namespace, from its folder's name."""
    return bytes.fromhex(folder[-12:])


def parse_rank_folder(name: str) -> int | None:
    """The rank whose chunk files lie in a folder of a namespace; None for any other name."""
    match = _RANK_FOLDER.fullmatch(name)
    return int(match[1]) if match else None


def is_hash_folder(name: str) -> bool:
    """Whether a folder of a rank may hold chunk files, by its name."""
    return _HASH_FOLDER.fullmatch(name) is not None


def is_chunk_name(hash_folder: str, name: str) -> bool:
    """Whether a file of a hash folder may be a chunk, by its name; as native IsChunkName."""
    match = _CHUNK_NAME.fullmatch(name)
    return (
        match is not None
        and name.startswith(hash_folder)
        and not len(match[1]) % 2
        and int(match[2]) < 2**32
    )


def doomed_name(folder: str, token: str) -> str:
    """Name in the root of a namespace that is being removed; ``token`` is 8 hex digits."""
    return f".removed-{folder}-{token}"


def is_doomed_folder(name: str) -> bool:
    """Whether a folder of the root is a namespace that is being removed, by its name."""
    match = _DOOMED.fullmatch(name)
    return match is not None and is_namespace_folder(match["folder"])


def chunk_path(folder: str, rank: int, key: bytes) -> str:
    """Path of a chunk file relative to the root."""
    return chunk_path_in(rank_folder(folder, rank), key)


def rank_folder(folder: str, rank: int) -> str:
    """Path of the folder of a rank's chunk files, relative to the root."""
    return f"{folder}/r{rank}"


def chunk_path_in(folder: str, key: bytes) -> str:
    """Path of a chunk file, given its rank's folder; native layout.h does the same."""
    digits = key[:-4].hex()
    return f"{folder}/{digits[:FOLDER_DIGITS]}/{digits}-g{group_of(key)}{CHUNK_SUFFIX}"


@dataclass(frozen=True, slots=True)
class ChunkName:
    """What a chunk file's path says."""

    folder: str
    rank: int
    key: ChunkKey


def parse_chunk_path(path: str) -> ChunkName | None:
    """The inverse of ``chunk_path``; None for a path that it could not have made."""
    folder, _, rest = path.partition("/")
    match = _CHUNK.fullmatch(rest)
    if (
        not is_namespace_folder(folder)
        or match is None
        or not match[3].startswith(match[2])
        or len(match[3]) % 2
    ):
        return None
    rank, group = int(match[1]), int(match[4])
    if group >= 2**32:
        return None
    name = ChunkName(folder, rank, make_key(bytes.fromhex(match[3]), group))
    return name if chunk_path(name.folder, name.rank, name.key) == path else None


@dataclass(frozen=True, slots=True)
class TempOwner:
    """Who writes a temp file.

    Attributes:
        boot: first 8 hex digits of the kernel's boot id; ``UNKNOWN_BOOT`` or "" if it is not known.
        pids: inode of the PID namespace in which ``pid`` means something, 0 if it is not known.
        start_ticks: the process's start time in clock ticks since boot, 0 if it is not known.
    """

    host: str
    boot: str
    pids: int
    pid: int
    start_ticks: int

    @property
    def is_known(self) -> bool:
        """Whether a process of the same machine can be compared with it."""
        return self.boot not in ("", UNKNOWN_BOOT) and self.pids != 0 and self.start_ticks != 0


def safe_host(host: str) -> str:
    """A host name as it stands in temp names."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", host)[:64] or "host"


def temp_name(owner: TempOwner, count: int) -> str:
    """Name of a temp file in a namespace's ``tmp`` folder."""
    return f"{_owner_name(owner)}-{count}.tmp"


def parse_temp_name(name: str) -> TempOwner | None:
    """The inverse of ``temp_name``; None for a name that it could not have made."""
    match = _TEMP.fullmatch(name)
    if match is None:
        return None
    owner = _owner_of(match)
    # Numbers with leading zeros are not ours: their owner would be judged by a guess.
    return owner if temp_name(owner, int(match["count"])) == name else None


def _owner_name(owner: TempOwner) -> str:
    return f"{owner.host}-{owner.boot}-{owner.pids}-{owner.pid}-{owner.start_ticks}"


def _owner_of(match: re.Match[str]) -> TempOwner:
    numbers = (int(match[name]) for name in ("pids", "pid", "start"))
    return TempOwner(match["host"], match["boot"], *numbers)


@dataclass(frozen=True, slots=True)
class LeaseName:
    """What the name of the lease file says; the file is empty.

    Attributes:
        term: how often the lease has changed hands.
        beat: renewals by this holder.
        token: 16 hex digits, drawn by the holder at random.
        owner: the holder; None if nobody holds it.
    """

    term: int
    beat: int
    token: str
    owner: TempOwner | None

    @property
    def order(self) -> tuple[int, str, int]:
        """Of several leases the greatest counts. Renewals do not change who that is."""
        return self.term, self.token, self.beat

    def __str__(self) -> str:
        who = "free" if self.owner is None else _owner_name(self.owner)
        return f"lease-{self.term:010}-{self.beat:010}-{self.token}-{who}"


def parse_lease_name(name: str) -> LeaseName | None:
    """The inverse of ``str``; None for a name that it could not have made."""
    match = _LEASE.fullmatch(name)
    if match is None:
        return None
    owner = None if match["host"] is None else _owner_of(match)
    lease = LeaseName(int(match["term"]), int(match["beat"]), match["token"], owner)
    return lease if str(lease) == name else None


def room_name(count: int) -> str:
    """Name of the empty file beside the lease that counts how often stores failed for no room."""
    return f"room-{count:010}"


def parse_room_name(name: str) -> int | None:
    """The inverse of ``room_name``; None for a name that it could not have made."""
    match = _ROOM.fullmatch(name)
    return int(match["count"]) if match else None


@dataclass(frozen=True, slots=True)
class RemovedName:
    """What the name of a journal of removed chunks says.

    Attributes:
        folder: the namespace.
        token: 16 hex digits, the process that writes it.
        part: number of the file among those of this process.
    """

    folder: str
    token: str
    part: int

    def __str__(self) -> str:
        return f"{self.folder}-{self.token}-{self.part}.keys"


def parse_removed_name(name: str) -> RemovedName | None:
    """The inverse of ``str``; None for a name that it could not have made."""
    match = _REMOVED.fullmatch(name)
    if match is None or not is_namespace_folder(match["folder"]):
        return None
    removed = RemovedName(match["folder"], match["token"], int(match["part"]))
    return removed if str(removed) == name else None


def owner_is_dead(
    owner: TempOwner, *, here: TempOwner, start_ticks_of: Callable[[int], int | None]
) -> bool | None:
    """Whether a temp file's writer is gone; None if only the file's age can tell.

    Processes are compared only with those that this process can see: of the same host name, boot
    and PID namespace. Two nodes may have pods of one host name, and two containers of a pod have
    the same host and boot but not the same processes. What a sandbox hides (WSL, LXC,
    ``ProcSubset=pid``, no /proc) can be equal by chance.

    Args:
        here: this process, as it would be named.
        start_ticks_of: start time of a process of this machine, None if there is none.
    """
    same = (owner.host, owner.boot, owner.pids) == (here.host, here.boot, here.pids)
    if not same or not owner.is_known:
        return None
    return start_ticks_of(owner.pid) != owner.start_ticks


__all__ = [
    "CHUNK_SUFFIX",
    "DOCTOR_FOLDER",
    "EVICT_FOLDER",
    "MARKER",
    "NAMESPACE_FILE",
    "REMOVED_FOLDER",
    "REMOVED_MAGIC",
    "ROOT_FILES",
    "ROOT_FOLDERS",
    "SCRUB_CURSOR",
    "TEMP_FOLDER",
    "UNKNOWN_BOOT",
    "ChunkName",
    "LeaseName",
    "RemovedName",
    "TempOwner",
    "chunk_path",
    "doomed_name",
    "is_doomed_folder",
    "is_hash_folder",
    "is_namespace_folder",
    "owner_is_dead",
    "parse_chunk_path",
    "parse_lease_name",
    "parse_rank_folder",
    "parse_removed_name",
    "parse_room_name",
    "parse_temp_name",
    "room_name",
    "safe_host",
    "short_digest",
    "temp_name",
]
