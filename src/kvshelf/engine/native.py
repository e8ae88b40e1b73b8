"""The native engine: ``Engine`` of ``base.py`` on the C++ core.

This is the one place that thinks about the GIL. The core never calls Python and never takes the
GIL; it is released while a call may wait (``wait``, ``drain``, ``close``, ``release``, and an
engine's construction and destruction). The calls of a scheduler's step keep it, because they take
microseconds: ``submit_*`` copy their arguments and queue them, and ``poll`` reads one atomic flag
unless there are reports.

Threads: all methods may be called from any thread.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvshelf.core import native as _native
from kvshelf.disk.threads import NO_THREAD
from kvshelf.engine.base import (
    Batch,
    EngineStats,
    FileStatus,
    GroupMemory,
    JobId,
    JobKind,
    JobResult,
    Phase,
)
from kvshelf.engine.config import EngineConfig
from kvshelf.errors import ConfigError, ResourceError

# Numbers shared with native/include/kvshelf/status.h, by position.
_STATUSES = tuple(FileStatus)
_KINDS = (JobKind.STORE, JobKind.LOAD, JobKind.LOOKUP, JobKind.PROBE)
_PHASES = (Phase.RELEASED, Phase.FINISHED)
# Fields of EngineConfig that the core takes as they are.
_FIELDS = tuple(_native.config_defaults())


class NativeEngine(_native.Engine):  # type: ignore[misc]
    """Moves chunk files on native threads. The contract is ``kvshelf.engine.base.Engine``.

    What is not here is the core's, with the contract's names and defaults.

    Args:
        root: an existing directory; paths in batches are relative to it.
        groups: block memory per group; empty for an engine that only looks up and touches. It must
            outlive the engine or a ``close()`` that returned True.
        config: limits; ``load_only_threads`` is cut to ``io_threads - 1``.
        namespace: 32 bytes, written to and demanded of every header.
        rank: the worker's rank, likewise.
        device: "cpu", or "cuda:N": block memory of that GPU, through the driver's own library
            (KVSHELF_LIBCUDA names another than libcuda.so.1).

    Raises:
        ValueError: a setting, group, the device or the namespace is out of range.
        RuntimeError: the CUDA driver cannot be opened or refuses; an auth_key without libcrypto.
        OSError: the root cannot be opened, or ``Direct.ON`` and it refuses O_DIRECT.
        ResourceError: the threads are not to be had.
        ConfigError: the memory for the threads' and stores' buffers is not to be had.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        groups: Sequence[GroupMemory],
        config: EngineConfig,
        *,
        namespace: bytes,
        rank: int,
        device: str = "cpu",
    ) -> None:
        arguments = (
            os.fspath(root),
            [
                (
                    [(page.address, page.stride_bytes, page.page_bytes) for page in group.pages],
                    group.num_blocks,
                    _geometry(group),
                )
                for group in groups
            ],
            {name: _number(getattr(config, name)) for name in _FIELDS},
            namespace,
            rank,
            "",
            _cuda_ordinal(device),
            _number(config.copy_method),
            config.auth_key,
        )
        threads = f"io_threads (threads_per_gpu) {config.io_threads}"
        try:
            super().__init__(*arguments)
        except BlockingIOError as error:  # EAGAIN of pthread_create(3): nothing else is thrown so
            text = f"for {threads}, lookup_threads {config.lookup_threads}: {NO_THREAD}"
            raise ResourceError(text) from error
        except MemoryError as error:
            allowed = (
                f"its buffers, and those of write_buffer_bytes (max_staging_memory_gb) "
                f"{config.write_buffer_bytes}, cannot be allocated: set them lower, or raise the "
                "limit of memory (ulimit -v, ulimit -l, memory.max)"
            )
            name = "io_threads (threads_per_gpu)"
            raise ConfigError(name, config.io_threads, allowed) from error

    def submit_store(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        """See ``Engine.submit_store``."""
        super().submit_store(job_id, *_columns(batch), stream)

    def submit_load(self, job_id: JobId, batch: Batch, stream: int = 0) -> None:
        """See ``Engine.submit_load``."""
        super().submit_load(job_id, *_columns(batch), stream)

    def poll(self) -> list[JobResult]:
        """See ``Engine.poll``. Some 0.1 microseconds if there is nothing to report."""
        reports = self._poll()  # not super(), which takes longer than the call
        if reports is None:
            return []
        return [_result(report) for report in reports]

    def wait(self, job_ids: Sequence[JobId], phase: Phase, timeout_seconds: float) -> bool:
        """See ``Engine.wait``."""
        return bool(super().wait(job_ids, _PHASES.index(phase), timeout_seconds))

    def stats(self) -> EngineStats:
        """See ``Engine.stats``."""
        return EngineStats(*super().stats())


def _columns(batch: Batch) -> tuple[Any, ...]:
    return (
        batch.paths,
        batch.keys,
        _column(batch.groups, "groups"),
        _column(batch.first_blocks, "first_blocks"),
        _column(batch.block_counts, "block_counts"),
        _column(batch.block_ids, "block_ids"),
    )


def _geometry(group: GroupMemory) -> int:
    """Digest of the page sizes in layer order, 0 to 2**64 - 1 (docs/format.md)."""
    sizes = [page.page_bytes for page in group.pages]
    packed = struct.pack(f"<{len(sizes)}Q", *sizes)
    return int.from_bytes(hashlib.sha256(packed).digest()[:8], "little")


def _number(value: Any) -> Any:
    """A choice as its position, as the core numbers them; other values as they are."""
    return list(type(value)).index(value) if isinstance(value, Enum) else value


def _cuda_ordinal(device: str) -> int:
    """The N of "cuda:N", -1 for "cpu"."""
    kind, _, ordinal = device.partition(":")
    if device == "cpu":
        return -1
    if kind != "cuda" or not ordinal.isdecimal():
        raise ValueError(f'device={device!r}: allowed are "cpu" and "cuda:N"')
    return int(ordinal)


def _column(array: NDArray[np.int32], name: str) -> NDArray[np.int32]:
    """The array as the core takes it: int32, one-dimensional, contiguous (copied if it is not)."""
    if not isinstance(array, np.ndarray) or array.dtype != np.int32 or array.ndim != 1:
        raise ValueError(f"{name} must be a one-dimensional int32 array")
    return np.ascontiguousarray(array)


def _result(report: tuple[Any, ...]) -> JobResult:
    job_id, kind, phase, statuses, errnos, payload_bytes, seconds = report
    return JobResult(
        job_id=job_id,
        kind=_KINDS[kind],
        phase=_PHASES[phase],
        statuses=tuple(map(_STATUSES.__getitem__, statuses)),
        errnos=(0,) * len(statuses) if errnos is None else tuple(errnos),
        payload_bytes=payload_bytes,
        seconds=seconds,
    )


def probe_direct(directory: str | os.PathLike[str]) -> int:
    """0 if O_DIRECT works for files in the directory, else an errno. Writes a temp file."""
    return int(_native.probe_direct(os.fspath(directory)))
