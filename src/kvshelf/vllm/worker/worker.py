"""A worker's side: moves the bytes of one rank between its KV cache and chunk files.

vLLM calls everything here from the worker's main thread; nothing waits for storage:

    submit_store -> RELEASED (bytes left the KV cache: vLLM's job is done) -> FINISHED (published)
    submit_load  -> FINISHED (vLLM's job is done, failed or not; what failed goes into the report)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from typing_extensions import override
from vllm.v1.kv_offload.base import (
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from kvshelf.disk.keys import group_of
from kvshelf.engine import FileStatus, JobKind, JobResult, Phase
from kvshelf.faultlog import FaultLog
from kvshelf.shelf import Chunk, Shelf
from kvshelf.vllm import compat
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.specs import ChunkKeysSpec, ChunkPlan, audited_keys, plan_chunks
from kvshelf.vllm.worker.auditor import Auditor
from kvshelf.vllm.worker.outcomes import Outcomes
from kvshelf.vllm.worker.worker_weights import WorkerWeights

logger = compat.logger_of(__name__)


@dataclass(frozen=True, slots=True)
class FailedLoad:
    """A load job of which some chunks failed.

    Attributes:
        block_ids: KV cache blocks that must be recomputed: those of the chunks that failed and of
            all chunks after them in the same group.
    """

    job_id: int
    block_ids: frozenset[int]


class KvshelfWorker(OffloadingWorker):
    """Source: vLLM's OffloadingWorker (vllm/v1/kv_offload/base.py). One thread: the worker's.

    Args:
        shelf: with this rank's block memory.
        group_ids: the group index found in keys, per position in vLLM's per-group lists.
        blocks_per_chunk: KV cache blocks in one chunk.
        current_stream: the device stream that vLLM queues its work on, as a number.
        load_timeout_seconds: bound on waiting for a load that vLLM wants within its step.
        close_timeout_seconds: how long shutdown lets write-behind finish.
        auditor: compares chunks that the scheduler marks, if audits are on.
    """

    def __init__(
        self,
        shelf: Shelf,
        *,
        group_ids: Sequence[int],
        blocks_per_chunk: int,
        current_stream: Callable[[], int] = lambda: 0,
        load_timeout_seconds: float,
        close_timeout_seconds: float,
        auditor: Auditor | None = None,
    ) -> None:
        self._shelf = shelf
        self._auditor = auditor
        self._group_ids = tuple(group_ids)
        self._blocks_per_chunk = blocks_per_chunk
        self._current_stream = current_stream
        self._load_timeout_seconds = load_timeout_seconds
        self._close_timeout_seconds = close_timeout_seconds
        self._stores: dict[int, ChunkPlan] = {}
        self._loads: dict[int, ChunkPlan] = {}
        self._done: list[TransferResult] = []  # jobs that ended at submission
        self._failed_loads: list[FailedLoad] = []
        self._doomed: set[int] = set()  # loads of KV that may come from other weights
        self._faults = FaultLog(logger)
        self._outcomes = Outcomes(self._faults, shelf)
        self.weights = WorkerWeights(shelf.rank)

    @override
    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        plan = self._plan(dst_spec, src_spec, is_store=True)
        is_known = self._knows_weights(dst_spec)
        if self._auditor is not None:
            plan = self._auditor.take(job_id, plan, audited_keys(dst_spec), is_known=is_known)
        for key in plan.unmapped:
            self._outcomes.store_outcome(key, FileStatus.DROPPED, 0)
        if is_known and plan.chunks and self._submitted(JobKind.STORE, job_id, plan.chunks):
            self._stores[job_id] = plan
        else:
            for chunk in plan.chunks:
                self._outcomes.store_outcome(chunk.key, FileStatus.DROPPED, 0)
            self._done.append(TransferResult(job_id, True))
        return True

    @override
    def submit_load(
        self,
        job_id: int,
        src_spec: LoadStoreSpec,
        dst_spec: GPULoadStoreSpec,
        expedited: bool = False,
    ) -> bool:
        plan = self._plan(src_spec, dst_spec, is_store=False)
        if plan.unmapped:
            # Which blocks those keys would have filled is unknown, so none of the job's is trusted.
            plan = ChunkPlan(unmapped=[*plan.unmapped, *(chunk.key for chunk in plan.chunks)])
        if plan.chunks and self._submitted(JobKind.LOAD, job_id, plan.chunks):
            self._loads[job_id] = plan
            self._outcomes.load_begins(job_id)
            return True
        keys = [*plan.unmapped, *(chunk.key for chunk in plan.chunks)]
        self._outcomes.load_refused(keys)
        if keys:
            self._failed_loads.append(
                FailedLoad(job_id, frozenset(int(block) for block in dst_spec.block_ids))
            )
        self._done.append(TransferResult(job_id, True))
        return True

    @override
    def get_finished(self) -> list[TransferResult]:
        results, self._done = self._done, []
        if self.weights.is_due():
            self._look_at_weights()
        for result in self._shelf.poll():
            if result.kind is JobKind.LOAD:
                results.append(self._finish_load(result))
            elif result.phase is Phase.RELEASED:
                results.append(
                    TransferResult(result.job_id, True, result.payload_bytes, result.seconds)
                )
            else:
                self._finish_store(result)
        if self._auditor is not None:
            self._auditor.tell(self._outcomes)
            results = self._auditor.gate(results)
        return results

    @override
    def wait(self, job_ids: set[int]) -> None:
        """Let go of these jobs' blocks: stores not yet taken are dropped, loads are waited for."""
        stores = [job for job in job_ids if job in self._stores]
        loads = [job for job in job_ids if job in self._loads]
        if self._auditor is not None:
            self._auditor.settle(job_ids)
        if stores:
            self._shelf.release(stores)
        if loads:
            self._shelf.wait(loads, Phase.FINISHED, self._load_timeout_seconds + 1.0)

    def give_up(self) -> None:
        """The weights may change: what is being loaded is to be computed, and what is to be stored
        and still lies in the KV cache is dropped. The weights are watched again once read."""
        self._doomed.update(self._loads)
        self.weights.watch_no_more()
        if self._stores:
            self._shelf.release(list(self._stores))

    def quiesce(self) -> None:
        """Touch the KV cache no more: its memory is about to go."""
        self.give_up()
        self.wait({*self._stores, *self._loads})
        if self._auditor is not None:
            self._auditor.settle()

    @override
    def shutdown(self) -> None:
        if self._auditor is not None:
            self._auditor.close(timeout_seconds=1.0)
        if not self._shelf.drain(self._close_timeout_seconds):
            self._faults.fault("shutdown", "stores not yet written are given up")
        self._shelf.close(timeout_seconds=1.0)

    def take_failed_loads(self) -> list[FailedLoad]:
        """Load jobs that ended with failed chunks since the last call."""
        failed, self._failed_loads = self._failed_loads, []
        return failed

    def take_report(self) -> WorkerReport | None:
        """What happened since the last call, or None if nothing did."""
        return self._outcomes.take(self._shelf.stats())

    def _knows_weights(self, spec: LoadStoreSpec) -> bool:
        """Whether what was computed comes from the weights that the scheduler knows of."""
        assert isinstance(spec, ChunkKeysSpec)
        if not self._look_at_weights():
            return False
        if self.weights.has(spec.adapter):
            return True
        self._outcomes.saw_changes(of_adapters=True)
        return False

    def _look_at_weights(self) -> bool:
        if not self.weights.have_changed():
            return True
        self._outcomes.saw_changes(of_weights=True)
        self.give_up()
        return False

    def _plan(self, keys: LoadStoreSpec, blocks: GPULoadStoreSpec, *, is_store: bool) -> ChunkPlan:
        assert isinstance(keys, ChunkKeysSpec)
        return plan_chunks(
            keys.keys,
            blocks,
            group_ids=self._group_ids,
            blocks_per_chunk=self._blocks_per_chunk,
            is_store=is_store,
        )

    def _submitted(self, kind: JobKind, job_id: int, chunks: Sequence[Chunk]) -> bool:
        """Submit; an engine that refuses is a fault like any other, not a crash of vLLM."""
        submit = self._shelf.submit_store if kind is JobKind.STORE else self._shelf.submit_load
        try:
            submit(job_id, chunks, self._current_stream())
        except Exception as error:
            self._faults.fault(f"submit {kind.value}", f"{type(error).__name__}: {error}")
            return False
        return True

    def _finish_load(self, result: JobResult) -> TransferResult:
        plan = self._loads.pop(result.job_id)
        is_doomed = result.job_id in self._doomed
        self._doomed.discard(result.job_id)
        failed_groups: set[int] = set()
        bad_blocks: set[int] = set()
        for chunk, status in zip(plan.chunks, result.statuses, strict=True):
            group = group_of(chunk.key)
            if status is not FileStatus.OK:
                failed_groups.add(group)
            if is_doomed or group in failed_groups:
                bad_blocks.update(map(int, chunk.block_ids))
        self._outcomes.load_ended([chunk.key for chunk in plan.chunks], result)
        if bad_blocks:
            self._failed_loads.append(FailedLoad(result.job_id, frozenset(bad_blocks)))
        return TransferResult(result.job_id, True, result.payload_bytes, result.seconds)

    def _finish_store(self, result: JobResult) -> None:
        plan = self._stores.pop(result.job_id)
        self._outcomes.store_ended([chunk.key for chunk in plan.chunks], result)


def blocks_of(failed: Iterable[FailedLoad]) -> set[int]:
    """All blocks that must be recomputed."""
    return {block for load in failed for block in load.block_ids}
