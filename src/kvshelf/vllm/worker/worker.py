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
from kvshelf.shelf import Shelf
from kvshelf.vllm import compat
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.specs import ChunkKeysSpec, ChunkPlan, audited_keys, plan_chunks
from kvshelf.vllm.worker.auditor import Auditor
from kvshelf.vllm.worker.transfers import Transfers
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
        self._load_timeout_seconds = load_timeout_seconds
        self._close_timeout_seconds = close_timeout_seconds
        self._done: list[TransferResult] = []  # jobs that ended at submission
        self._failed_loads: list[FailedLoad] = []
        self._doomed: set[int] = set()  # loads of KV that may come from other weights
        self._transfers = Transfers(shelf, logger, current_stream)
        self.weights = WorkerWeights(shelf.rank)

    @override
    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        plan = self._plan(dst_spec, src_spec, is_store=True)
        is_known = self._knows_weights(dst_spec)
        if self._auditor is not None:
            plan = self._auditor.take(job_id, plan, audited_keys(dst_spec), is_known=is_known)
        self._transfers.drop(plan.unmapped)
        if not is_known:
            self._transfers.drop(chunk.key for chunk in plan.chunks)
        if not is_known or not self._transfers.store(job_id, plan.chunks):
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
            keys = [*plan.unmapped, *(chunk.key for chunk in plan.chunks)]
            self._transfers.outcomes.load_refused(keys)
        elif self._transfers.load(job_id, plan.chunks):
            return True
        if plan.unmapped or plan.chunks:
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
                self._transfers.ended(result)
        if self._auditor is not None:
            self._auditor.tell(self._transfers.outcomes)
            results = self._auditor.gate(results)
        return results

    @override
    def wait(self, job_ids: set[int]) -> None:
        """Let go of these jobs' blocks: stores not yet taken are dropped, loads are waited for."""
        stores = [job for job in job_ids if job in self._transfers.stores]
        loads = [job for job in job_ids if job in self._transfers.loads]
        if self._auditor is not None:
            self._auditor.settle(job_ids)
        if stores:
            self._shelf.release(stores)
        if loads:
            self._shelf.wait(loads, Phase.FINISHED, self._load_timeout_seconds + 1.0)

    def give_up(self) -> None:
        """The weights may change: what is being loaded is to be computed, and what is to be stored
        and still lies in the KV cache is dropped. The weights are watched again once read."""
        self._doomed.update(self._transfers.loads)
        self.weights.watch_no_more()
        if self._transfers.stores:
            self._shelf.release(list(self._transfers.stores))

    def quiesce(self) -> None:
        """Touch the KV cache no more: its memory is about to go."""
        self.give_up()
        self.wait({*self._transfers.stores, *self._transfers.loads})
        if self._auditor is not None:
            self._auditor.settle()

    @override
    def shutdown(self) -> None:
        if self._auditor is not None:
            self._auditor.close(timeout_seconds=1.0)
        self._transfers.close(self._close_timeout_seconds)

    def take_failed_loads(self) -> list[FailedLoad]:
        """Load jobs that ended with failed chunks since the last call."""
        failed, self._failed_loads = self._failed_loads, []
        return failed

    def take_report(self) -> WorkerReport | None:
        """What happened since the last call, or None if nothing did."""
        return self._transfers.take_report()

    def _knows_weights(self, spec: LoadStoreSpec) -> bool:
        """Whether what was computed comes from the weights that the scheduler knows of."""
        assert isinstance(spec, ChunkKeysSpec)
        if not self._look_at_weights():
            return False
        if self.weights.has(spec.adapter):
            return True
        self._transfers.outcomes.saw_changes(of_adapters=True)
        return False

    def _look_at_weights(self) -> bool:
        if not self.weights.have_changed():
            return True
        self._transfers.outcomes.saw_changes(of_weights=True)
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

    def _finish_load(self, result: JobResult) -> TransferResult:
        chunks = self._transfers.ended(result)
        is_doomed = result.job_id in self._doomed
        self._doomed.discard(result.job_id)
        failed_groups: set[int] = set()
        bad_blocks: set[int] = set()
        for chunk, status in zip(chunks, result.statuses, strict=True):
            group = group_of(chunk.key)
            if status is not FileStatus.OK:
                failed_groups.add(group)
            if is_doomed or group in failed_groups:
                bad_blocks.update(map(int, chunk.block_ids))
        if bad_blocks:
            self._failed_loads.append(FailedLoad(result.job_id, frozenset(bad_blocks)))
        return TransferResult(result.job_id, True, result.payload_bytes, result.seconds)


def blocks_of(failed: Iterable[FailedLoad]) -> set[int]:
    """All blocks that must be recomputed."""
    return {block for load in failed for block in load.block_ids}
