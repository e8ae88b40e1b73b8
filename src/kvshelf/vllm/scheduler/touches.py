"""When chunks were last used, in an order that helps eviction: a prefix's head after its tail.

A chunk is of no use without those before it. So chunk i of a request gets the time of use
base - i x step, where base is one time for the whole request: whoever removes the oldest first
removes tails first. The step is 1 ms, or that of the file system's times where they are coarser
(1 s on MooseFS, 2 s on VFAT): else a second's chunks would have no order.

    prepare_load, prepare_store -> Touches -> Shelf.touch_at (background threads)
    published                   -> ChunkTable -> Touches
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvshelf.faultlog import FaultLog
from kvshelf.vllm import compat
from kvshelf.vllm.bounded import drop_oldest
from kvshelf.vllm.scheduler.chunk_table import ChunkTable
from kvshelf.vllm.scheduler.masked import MaskedShelf

_STEP_NS = 1_000_000
# A clock that is set while a request runs differs by more; one that is slewed, by less.
_JUMP_NS = 10**9
# More than run at once: vLLM 0.26 stores the last chunk of a request that has finished.
REQUESTS_MAX = 16_384


@dataclass(slots=True)
class _Request:
    """
    Attributes:
        base_ns: when it came, by CLOCK_REALTIME, in the middle of a step.
        since_ns: the same by CLOCK_MONOTONIC.
        held: chunks on the shelf that it used; None once it has stored something behind them.
    """

    base_ns: int
    since_ns: int
    held: dict[bytes, None] | None = field(default_factory=dict)


class Touches:
    """Scheduler's thread only; nothing here waits for storage.

    Args:
        chunk_tokens: tokens of a chunk.
        interval_seconds: a chunk is not touched again sooner, unless something is stored behind it.
    """

    def __init__(
        self,
        shelf: MaskedShelf,
        table: ChunkTable,
        faults: FaultLog,
        *,
        chunk_tokens: int,
        interval_seconds: float,
    ) -> None:
        self._shelf = shelf
        self._table = table
        self._faults = faults
        self._chunk_tokens = chunk_tokens
        self._interval_seconds = interval_seconds
        self._requests: dict[str, _Request] = {}

    def used(self, keys: Sequence[bytes], context: Any) -> None:
        """These chunks of a request, on the shelf already, are used."""
        request = self._of(context)
        if request.held is None:
            self.touch(keys, self._times(request, keys, context))
            return
        request.held.update(dict.fromkeys(keys))
        # Hot ones cost no system call.
        due = self._table.due(keys, time.monotonic(), self._interval_seconds)
        if due:
            self.touch(due, self._times(request, due, context), always=False)

    def stores(self, keys: Sequence[bytes], context: Any) -> list[int]:
        """These chunks of a request are being stored: what it used is in front of them.

        Returns:
            the times of use, in ns, that they are to get once they are published.
        """
        request = self._of(context)
        if request.held:
            held = list(request.held)
            self.touch(held, self._times(request, held, context))
        request.held = None
        return self._times(request, keys, context)

    def touch(self, keys: Sequence[bytes], times_ns: Sequence[int], *, always: bool = True) -> None:
        """Give chunks their times of use; ``always``: also to those touched a moment ago."""
        try:
            self._shelf.touch_at(keys, times_ns, always=always)
        except Exception as error:  # only the order of eviction suffers
            self._faults.fault("touch", f"{type(error).__name__}: {error}")

    def finished(self, req_id: str) -> None:
        self._requests.pop(req_id, None)

    @property
    def _step_ns(self) -> int:
        return max(_STEP_NS, self._shelf.step_ns)

    def _of(self, context: Any) -> _Request:
        request = self._requests.get(context.req_id)
        if request is None:
            step = self._step_ns
            base_ns = time.time_ns() // step * step + step // 2
            request = self._requests[context.req_id] = _Request(base_ns, time.monotonic_ns())
            drop_oldest(self._requests, REQUESTS_MAX)
        return request

    def _times(self, request: _Request, keys: Collection[bytes], context: Any) -> list[int]:
        ends = compat.end_tokens(context, keys, self._chunk_tokens)
        step = self._step_ns
        jump = time.time_ns() - request.base_ns - (time.monotonic_ns() - request.since_ns)
        if abs(jump) > _JUMP_NS + step:  # the clock was set
            request.base_ns += jump
        base, per_token = request.base_ns + step, step / self._chunk_tokens
        # After 1970, however wrong the clock is.
        return [max(1, base - int(end * per_token)) for end in ends]
