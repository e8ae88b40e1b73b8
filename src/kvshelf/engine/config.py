"""An engine's configuration: one table of fields, which the native core reads by name.

A field that a user may set has its default in ``kvshelf.config`` alone; the others have theirs
here. ``native/include/kvshelf/config.h`` repeats both for callers in C++, and
tests/engine/test_config.py compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Self

from kvshelf.config import Settings
from kvshelf.disk.auth import read_key

# Longer than any engine runs; the engine's clock counts in nanoseconds and would end at 292 years.
_NO_LIMIT_SECONDS = 10 * 365 * 86_400.0


class Direct(Enum):
    """Use of O_DIRECT for chunk payloads. AUTO probes the root and uses it where it works."""

    OFF = "off"
    AUTO = "auto"
    ON = "on"


class CopyMethod(Enum):
    """How a piece goes to or from a GPU. AUTO: small pages by a kernel of ours, others by BATCH.

    BATCH: one call of the driver for all pages, SINGLE: one a page; both by DMA.
    """

    AUTO = "auto"
    BATCH = "batch"
    SINGLE = "single"


class Durability(Enum):
    """What is synced before a store counts as done: nothing, the file, the file and its folder."""

    NONE = "none"
    DATA = "data"
    FULL = "full"


def _set_by(setting: Callable[[Settings], Any], *, shown: bool = True) -> Any:
    """A field that a user's settings decide, and their defaults if nobody sets it."""
    return field(
        default_factory=lambda: setting(Settings()), repr=shown, metadata={"setting": setting}
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits and habits of an engine. Every field has a unit in its name and a default.

    Those of a setting are described in docs/reference/settings.md.
    """

    # Threads that do file I/O. Each owns its staging memory.
    io_threads: int = _set_by(lambda user: user.threads_per_gpu)
    # Threads that stores may never occupy, so that loads do not wait behind slow writes.
    load_only_threads: int = _set_by(lambda user: user.load_only_threads)
    # Threads for lookups and touches: small metadata calls that must not queue behind payloads.
    # Storage across a network answers in milliseconds: the more, the sooner thousands are known.
    lookup_threads: int = _set_by(lambda user: user.lookup_threads)
    # Bytes that one checksum covers; read and copied as a unit (docs/format.md).
    piece_bytes: int = _set_by(lambda user: user.piece_mib << 20)
    # Bytes per read() and hash, small enough to be hashed while in L2 (design: 256 KiB was best).
    step_bytes: int = 256 << 10
    # Staging memory of write-behind stores. A full buffer makes stores queue, then drop.
    write_buffer_bytes: int = _set_by(lambda user: int(user.max_staging_memory_gb * 1e9))
    # A root that does not answer for this long when a shelf is opened cannot be used. A server of
    # NFS 4 that was just started lets nobody open a file for up to 90 s, its grace period.
    open_timeout_seconds: float = _set_by(lambda user: user.open_timeout_seconds)
    # A store whose bytes could not be taken for this long is dropped.
    store_queue_seconds: float = _set_by(
        lambda user: user.max_write_queued_seconds or _NO_LIMIT_SECONDS
    )
    # A store whose file is not published this long after its bytes were taken is given up.
    store_timeout_seconds: float = _set_by(lambda user: user.store_timeout_seconds)
    # A load that is not done after this long fails, and its blocks are recomputed.
    load_timeout_seconds: float = _set_by(lambda user: user.load_timeout_seconds)
    # A load of which nothing came for this long fails, however far its deadline is.
    load_stall_seconds: float = _set_by(lambda user: user.load_stall_seconds)
    # A lookup that is not answered after this long is TIMED_OUT.
    lookup_timeout_seconds: float = _set_by(lambda user: user.lookup_timeout_seconds)
    # Access times younger than this are not renewed by touch.
    touch_interval_seconds: float = _set_by(lambda user: user.touch_interval_seconds)
    # Touches waiting to be done; more are dropped.
    touch_queue_files: int = 65536
    # Stores, loads or lookups waiting, in files; more stores are dropped, more loads fail at once.
    queue_files: int = 65536
    # True: a store is RELEASED when its bytes are in staging memory. False: when it is FINISHED.
    write_behind: bool = True
    # False skips the payload checksums of loads (never the header's). For measurement only.
    verify: bool = _set_by(lambda user: user.verify)
    # Whether files found CORRUPT or FOREIGN are removed, so that the chunk can be stored again.
    remove_bad: bool = True
    # Whether pieces of bf16 numbers are packed (docs/packing.md); what does not shrink is not.
    compress: bool = _set_by(lambda user: user.compress == "on")
    direct: Direct = _set_by(lambda user: Direct(user.direct))  # noqa: RUF009 - a field
    durability: Durability = _set_by(lambda user: Durability(user.durability))  # noqa: RUF009
    # For measurement only: AUTO chose the faster one wherever both were measured.
    copy_method: CopyMethod = CopyMethod.AUTO
    # Permissions of new files and folders, before the umask.
    file_mode: int = _set_by(lambda user: user.file_mode)
    dir_mode: int = _set_by(lambda user: user.dir_mode)
    # I/O threads that hang in the kernel past their deadline are replaced up to this many times.
    replacement_threads: int = 16
    # A secret of 32 bytes or more: files are stored with tags made with it, and only such load.
    # Empty: checksums.
    auth_key: bytes = _set_by(
        lambda user: read_key(user.auth_key_file) if user.auth_key_file else b"", shown=False
    )

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The engine's part of a user's settings.

        Raises:
            ConfigError: the file of the authentication key cannot be used.
        """
        given = {each.name: each.metadata.get("setting") for each in fields(cls)}
        return cls(**{name: setting(settings) for name, setting in given.items() if setting})


def divided(config: EngineConfig, parts: int) -> list[EngineConfig]:
    """A configuration's threads, queues and staging memory in parts, the first ones the larger."""
    if parts == 1:
        return [config]

    def part(total: int, index: int) -> int:
        return max(1, total // parts + (index < total % parts))

    return [
        replace(
            config,
            io_threads=part(config.io_threads, index),
            load_only_threads=min(config.load_only_threads, part(config.load_only_threads, index)),
            lookup_threads=part(config.lookup_threads, index),
            write_buffer_bytes=max(config.piece_bytes, config.write_buffer_bytes // parts),
            queue_files=part(config.queue_files, index),
            touch_queue_files=part(config.touch_queue_files, index),
        )
        for index in range(parts)
    ]
