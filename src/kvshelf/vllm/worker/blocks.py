"""Copies KV cache blocks into host memory, in the order of the device's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class Copied(Protocol):
    """When a copy is done: a CUDA event, or ``DONE``."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class _Done:
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return


DONE = _Done()


def host_bytes(size: int, *, pinned: bool) -> torch.Tensor:
    """uint8[size] of host memory; pinned, so that a GPU writes to it by itself."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


class ComputedBlocks:
    """The KV cache of one rank. One thread: the worker's.

    Args:
        pages: per group and page a tensor of one byte a value, [num_blocks, page bytes].
    """

    def __init__(self, pages: Sequence[Sequence[torch.Tensor]]) -> None:
        self._pages = [[page.view(torch.uint8) for page in group] for group in pages]
        self.device = self._pages[0][0].device
        self.page_bytes = tuple(tuple(page.shape[1] for page in group) for group in self._pages)

    def copy(self, group: int, block_ids: NDArray[np.int32], out: torch.Tensor) -> Copied:
        """Begin to copy blocks into ``out``, uint8[blocks, bytes of a block], after all work that
        is queued on the device's current stream. On a CPU it is done when this returns.

        Raises:
            RuntimeError: no memory on the device, among others.
        """
        ids = torch.from_numpy(np.asarray(block_ids, dtype=np.int64))
        if self.device.type == "cpu":
            self._gather(group, ids, out)
            return DONE
        with torch.cuda.device(self.device):
            # Gathered there and copied in one: a block's pages are in as many places as it has
            # layers. The memory is used again in the stream's order only.
            gathered = torch.empty(out.shape, dtype=torch.uint8, device=self.device)
            self._gather(group, ids.to(self.device, non_blocking=True), gathered)
            out.copy_(gathered, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            return event

    def _gather(self, group: int, ids: torch.Tensor, out: torch.Tensor) -> None:
        begin = 0
        for page in self._pages[group]:
            end = begin + page.shape[1]
            out[:, begin:end] = page.index_select(0, ids)
            begin = end
