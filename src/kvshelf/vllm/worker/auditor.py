"""A worker's side of audits: compares computed blocks with the shelf's chunk, and removes it.

    take    the model's thread copies the computed blocks of a chunk into a slot of host memory
    gate    holds the job's completion back until the copies are done: vLLM may reuse the blocks
    thread  loads the shelf's chunk into the slot beside them, verified as always, and compares
    tell    the model's thread hands the findings over, for the report

A chunk that differs is read and compared a second time with its file held open, so that what is
removed is what was compared. The thread alone waits for storage.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.kv_offload.base import TransferResult

from kvshelf.config import Settings
from kvshelf.disk.keys import group_of, hash_of
from kvshelf.disk.namespace import Identity
from kvshelf.disk.threads import start
from kvshelf.engine import EngineConfig, FileStatus, GroupMemory, Pages
from kvshelf.errors import ConfigError, NotAShelfError
from kvshelf.faultlog import FaultLog
from kvshelf.shelf import Chunk, Shelf
from kvshelf.vllm import compat
from kvshelf.vllm.specs import ChunkPlan
from kvshelf.vllm.worker.blocks import ComputedBlocks, Copied, host_bytes
from kvshelf.vllm.worker.compare import Comparison, Kind, Section, Verdict, compare, tolerances
from kvshelf.vllm.worker.held import hold
from kvshelf.vllm.worker.outcomes import Outcomes
from kvshelf.vllm.worker.pages import PageKinds, page_sections

logger = compat.logger_of(__name__)

# Chunks under audit at once, however small they are: a step that computes more is unusual.
SLOTS_MAX = 256


@dataclass(frozen=True, slots=True)
class _Task:
    chunk: Chunk
    slot: int
    copied: Copied


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Attributes:
        key: of the chunk.
        status: of its load; OK if it was compared.
        distance: in tolerances.
    """

    key: bytes
    verdict: Verdict
    status: FileStatus = FileStatus.OK
    distance: float = 0.0


class Auditor:
    """One thread, the worker's, but for its own thread.

    Args:
        open_shelf: gives a shelf of this rank over block memory in host memory, and keeps the
            second argument, its owner, for as long as it uses the memory.
        computed: the KV cache.
        group_ids: the group index found in keys, per group of ``computed``.
        blocks_per_chunk: KV cache blocks in one chunk.
        sections: what is in each page, per group; None: chunks of this group are not audited.
        limits: distances that count as rounding, by kind.
        memory_bytes: of host memory, for the computed and the stored bytes of chunks.

    Attributes:
        slots: chunks that may be under audit at once; at least one.
    """

    def __init__(
        self,
        open_shelf: Callable[[Sequence[GroupMemory], object], Shelf],
        computed: ComputedBlocks,
        *,
        group_ids: Sequence[int],
        blocks_per_chunk: int,
        sections: Sequence[Sequence[Sequence[Section]] | None],
        limits: dict[Kind, float],
        memory_bytes: int,
    ) -> None:
        self._computed = computed
        self._position = {group: position for position, group in enumerate(group_ids)}
        self._per_chunk = blocks_per_chunk
        self._sections = list(sections)
        self._limits = limits
        self._faults = FaultLog(logger)  # the model's thread's
        self._thread_faults = FaultLog(logger)
        chunk_bytes = blocks_per_chunk * max(map(sum, computed.page_bytes))
        self.slots = max(1, min(SLOTS_MAX, memory_bytes // (2 * chunk_bytes)))
        try:
            self._memory = _SlotMemory(computed, blocks_per_chunk, self.slots)
        except (MemoryError, RuntimeError) as error:  # torch's of memory is a RuntimeError
            mib = memory_bytes >> 20
            raise ConfigError("audit_memory_mib", mib, f"cannot be allocated ({error})") from error
        self._shelf = open_shelf(self._memory.groups, self._memory)
        self._free = deque(range(self.slots))
        self._copying: dict[int, list[Copied]] = {}  # job -> copies that may be under way
        self._held: dict[int, TransferResult] = {}  # completions of those jobs
        self._findings: deque[Finding] = deque()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kvshelf-audit", daemon=True)
        start(self._thread)

    def take(
        self, job_id: int, plan: ChunkPlan, audited: Collection[bytes], *, is_known: bool
    ) -> ChunkPlan:
        """Begin to audit these keys of a store job; returns the plan without them.

        Never raises: what cannot be audited is skipped.

        Args:
            is_known: whether the blocks come from the weights that the scheduler knows of.
        """
        if not audited:
            return plan
        for chunk in plan.chunks:
            if chunk.key in audited and not is_known:
                self._findings.append(Finding(chunk.key, Verdict.SKIPPED))
            elif chunk.key in audited:
                self._begin(job_id, chunk)
        for key in plan.unmapped:
            if key in audited:
                self._findings.append(Finding(key, Verdict.SKIPPED))
        return ChunkPlan(
            chunks=[chunk for chunk in plan.chunks if chunk.key not in audited],
            unmapped=[key for key in plan.unmapped if key not in audited],
        )

    def gate(self, results: list[TransferResult]) -> list[TransferResult]:
        """The completions that vLLM may hear of now: those whose blocks have been copied."""
        if not self._copying:
            return results
        for job_id, copies in list(self._copying.items()):
            if all(copied.query() for copied in copies):
                del self._copying[job_id]
        out = [self._held.pop(job) for job in list(self._held) if job not in self._copying]
        for result in results:
            if result.job_id in self._copying:
                self._held[result.job_id] = result
            else:
                out.append(result)
        return out

    def settle(self, job_ids: Iterable[int] | None = None) -> None:
        """Wait until the blocks of these jobs, or of all, have been copied: memory speed, no
        storage."""
        for job_id in list(self._copying) if job_ids is None else job_ids:
            for copied in self._copying.get(job_id, ()):
                copied.synchronize()

    def tell(self, outcomes: Outcomes) -> None:
        """Hand over what was found since the last call."""
        while self._findings:
            finding = self._findings.popleft()
            outcomes.audited(finding.key, finding.verdict.value, finding.distance)
            if finding.status is not FileStatus.OK:
                outcomes.load_failure(finding.key, finding.status, 0)

    def close(self, timeout_seconds: float) -> None:
        """End the thread, which storage may hold: then it is left behind."""
        self._tasks.put(None)
        self._shelf.close(timeout_seconds)  # its loads end now
        self._thread.join(timeout_seconds)

    def _begin(self, job_id: int, chunk: Chunk) -> None:
        position = self._position[group_of(chunk.key)]
        if self._sections[position] is None or not self._free:
            self._findings.append(Finding(chunk.key, Verdict.SKIPPED))
            return
        slot = self._free.popleft()
        ids = np.asarray(chunk.block_ids, dtype=np.int32)
        try:
            copied = self._computed.copy(position, ids, self._memory.out(slot, position, len(ids)))
        except Exception as error:  # of torch's many kinds; a model must not end for an audit
            self._faults.fault("audit skipped", f"blocks cannot be copied: {error}")
            self._free.append(slot)
            self._findings.append(Finding(chunk.key, Verdict.SKIPPED))
            return
        if not copied.query():
            self._copying.setdefault(job_id, []).append(copied)
        self._tasks.put(_Task(chunk, slot, copied))

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                finding = self._judge(task)
            except Exception as error:  # the thread must go on
                self._thread_faults.fault("audit skipped", f"{type(error).__name__}: {error}")
                finding = Finding(task.chunk.key, Verdict.SKIPPED)
            self._findings.append(finding)
            self._free.append(task.slot)

    def _judge(self, task: _Task) -> Finding:
        task.copied.synchronize()
        status, found = self._load_and_compare(task)
        if found.verdict is not Verdict.DIFFERENT:
            return Finding(task.chunk.key, found.verdict, status, found.distance)
        reason = "its file is removed"
        try:
            root = self._shelf.roots[self._shelf.root_of(task.chunk.key)]
            with hold(root, self._shelf.path_of(task.chunk.key)) as held:
                status, again = self._load_and_compare(task)
                if again.verdict is not Verdict.DIFFERENT:
                    # Memory or a network damaged it on its way, or another file is there by now.
                    self._say(logging.WARNING, task, found, f"read again: {again.verdict.value}")
                    return Finding(task.chunk.key, again.verdict, status, again.distance)
                if not held.remove():
                    reason = "its file is absent or replaced by now"
        except (OSError, NotAShelfError) as error:
            reason = f"its file cannot be removed: {error}"
        self._say(logging.ERROR, task, found, reason)
        return Finding(task.chunk.key, Verdict.DIFFERENT, distance=found.distance)

    def _load_and_compare(self, task: _Task) -> tuple[FileStatus, Comparison]:
        key, count = task.chunk.key, len(task.chunk.block_ids)
        position = self._position[group_of(key)]
        rows = range(task.slot * self._per_chunk, task.slot * self._per_chunk + count)
        (status,) = self._shelf.load([task.chunk._replace(block_ids=rows)])
        if status is not FileStatus.OK:
            return status, Comparison(Verdict.SKIPPED)
        sections = self._sections[position]
        assert sections is not None
        return status, compare(
            self._memory.computed(task.slot, position, count),
            self._memory.stored(rows, position),
            self._computed.page_bytes[position],
            sections,
            self._limits,
        )

    def _say(self, level: int, task: _Task, found: Comparison, outcome: str) -> None:
        key = task.chunk.key
        logger.log(
            level,
            "kvshelf: audit: chunk %s of group %d, rank %d, namespace %s in %s differs from what "
            "this engine computes: %.3g times the tolerance, at worst in page %d; %s",
            hash_of(key).hex(),
            group_of(key),
            self._shelf.rank,
            self._shelf.folder,
            self._shelf.roots[self._shelf.root_of(key)],
            found.distance,
            found.page,
            outcome,
        )


def make(
    settings: Settings,
    config: EngineConfig,
    identity: Identity,
    kinds: PageKinds,
    pages: Sequence[Sequence[torch.Tensor]],
    *,
    rank: int,
    world_size: int,
    group_ids: Sequence[int],
    blocks_per_chunk: int,
) -> Auditor:
    """The auditor of one rank.

    Args:
        config: of the worker's own engine.
        pages: the KV cache; see ``ComputedBlocks``.
    """
    computed = ComputedBlocks(pages)
    sections = []
    for group, sizes in zip(group_ids, computed.page_bytes, strict=True):
        sections.append(page_sections(kinds.layers[group], sizes))
        if sections[-1] is None:
            logger.warning(
                "kvshelf: chunks of KV cache group %d are not audited: its pages also hold bytes "
                "that no layer of the group writes",
                group,
            )
    roots = settings.roots
    # One load at a time, and nothing else.
    small = replace(
        config,
        io_threads=2,
        load_only_threads=1,
        lookup_threads=1,
        write_buffer_bytes=config.piece_bytes * len(roots),
    )

    def open_shelf(groups: Sequence[GroupMemory], owner: object) -> Shelf:
        return Shelf(
            roots,
            identity,
            rank=rank,
            world_size=world_size,
            groups=groups,
            group_ids=group_ids,
            config=small,
            keep_alive=owner,
        )

    return Auditor(
        open_shelf,
        computed,
        group_ids=group_ids,
        blocks_per_chunk=blocks_per_chunk,
        sections=sections,
        limits=tolerances(settings.audit_tolerance, kinds.model),
        memory_bytes=settings.audit_memory_mib << 20,
    )


class _SlotMemory:
    """Host memory for the computed and the stored bytes of some chunks.

    Stored: a row a block, as long as the largest group's block, so that groups share the rows.
    Computed: a slot's blocks without gaps, so that a GPU copies them in one.
    """

    def __init__(self, computed: ComputedBlocks, blocks_per_chunk: int, slots: int) -> None:
        self._block_bytes = [sum(pages) for pages in computed.page_bytes]
        row_bytes, rows = max(self._block_bytes), slots * blocks_per_chunk
        on_gpu = computed.device.type != "cpu"
        self._slot_bytes = row_bytes * blocks_per_chunk
        self._computed = host_bytes(slots * self._slot_bytes, pinned=on_gpu)
        self._stored = np.empty((rows, row_bytes), dtype=np.uint8)
        self.groups = []
        for pages in computed.page_bytes:
            begins = np.cumsum([0, *pages]).tolist()
            self.groups.append(
                GroupMemory(
                    tuple(
                        Pages(self._stored.ctypes.data + begin, row_bytes, size)
                        for begin, size in zip(begins, pages, strict=False)
                    ),
                    num_blocks=rows,
                )
            )

    def out(self, slot: int, position: int, blocks: int) -> torch.Tensor:
        begin, size = slot * self._slot_bytes, self._block_bytes[position]
        return self._computed[begin : begin + blocks * size].view(blocks, size)

    def computed(self, slot: int, position: int, blocks: int) -> NDArray[np.uint8]:
        return self.out(slot, position, blocks).numpy()

    def stored(self, rows: range, position: int) -> NDArray[np.uint8]:
        return self._stored[rows.start : rows.stop, : self._block_bytes[position]]
