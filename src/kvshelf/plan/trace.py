"""A trace: requests in the order of time, each a chain of blocks of its prompt. Pure.

A block's id stands for all tokens up to its end, as a chunk's key does: two requests with a block
in common have all blocks before it in common too. What is not a whole block is left out, because
vLLM neither keeps nor finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvshelf.errors import KvshelfError


class TraceError(KvshelfError, ValueError):
    """A trace, or a model's configuration, cannot be used; says the file, the line and what may be.

    Attributes:
        file: as the user named it.
        line: from 1; 0 if it is the file as a whole.
    """

    def __init__(self, file: str, line: int, message: str) -> None:
        super().__init__(f"{file}:{line}: {message}" if line else f"{file}: {message}")
        self.file = file
        self.line = line


class NotChainedError(KvshelfError, ValueError):
    """A block follows two different ones, so its id does not stand for all before it.

    Attributes:
        request: position of the second request.
        block: the id, as it was given.
    """

    def __init__(self, request: int, block: int) -> None:
        super().__init__(f"block {block} of request {request} followed another block before")
        self.request = request
        self.block = block


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """
    Attributes:
        block_tokens: tokens of a block.
        seconds: float64[requests], when each came; does not fall.
        prompt_tokens: int64[requests], the whole prompts.
        offsets: int64[requests + 1], where each request's blocks begin in ``blocks``.
        blocks: int32[references], ids from 0, in the order in which they first appear.
    """

    block_tokens: int
    seconds: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    offsets: NDArray[np.int64]
    blocks: NDArray[np.int32]

    @property
    def requests(self) -> int:
        return len(self.prompt_tokens)

    @property
    def distinct_blocks(self) -> int:
        """Blocks of a shelf that keeps all: the trace's footprint."""
        return int(self.blocks.max()) + 1 if len(self.blocks) else 0

    @property
    def duration_seconds(self) -> float:
        return float(self.seconds[-1] - self.seconds[0]) if len(self.seconds) else 0.0

    def part(self, begin: int, end: int) -> Trace:
        """Requests ``begin`` to ``end - 1`` as a trace of their own."""
        first, last = self.offsets[begin], self.offsets[end]
        _, blocks = _numbered(self.blocks[first:last])
        return Trace(
            self.block_tokens,
            self.seconds[begin:end],
            self.prompt_tokens[begin:end],
            self.offsets[begin : end + 1] - first,
            blocks,
        )


def make_trace(
    block_tokens: int,
    seconds: Sequence[float] | NDArray[np.float64],
    prompt_tokens: Sequence[int] | NDArray[np.int64],
    counts: Sequence[int] | NDArray[np.int64],
    ids: Sequence[int] | NDArray[np.int64],
) -> Trace:
    """A trace of requests in any order of time, ids being any 64-bit numbers.

    Args:
        counts: blocks that each request has in ``ids``; those that are not whole are left out.
        ids: of all requests, one after the other.

    Raises:
        NotChainedError: two requests share a block but not what comes before it.
    """
    times = np.asarray(seconds, dtype=np.float64)
    tokens = np.asarray(prompt_tokens, dtype=np.int64)
    given = np.asarray(counts, dtype=np.int64)
    flat = np.asarray(ids, dtype=np.int64)
    whole = np.minimum(given, tokens // block_tokens)
    if (whole < given).any():
        starts = np.cumsum(given) - given
        index_in_request = np.arange(len(flat)) - np.repeat(starts, given)
        flat = flat[index_in_request < np.repeat(whole, given)]
    order = None
    if (np.diff(times) < 0).any():
        order = np.argsort(times, kind="stable")
        starts = (np.cumsum(whole) - whole)[order]
        whole = whole[order]
        begin = np.repeat(starts - (np.cumsum(whole) - whole), whole)
        flat = flat[begin + np.arange(len(flat))]
        times, tokens = times[order], tokens[order]
    offsets = np.concatenate([[0], np.cumsum(whole)])
    given_ids, blocks = _numbered(flat)
    wrong = _not_chained(offsets, blocks)
    if wrong is not None:
        request, block = wrong
        given_request = request if order is None else int(order[request])
        raise NotChainedError(given_request, int(given_ids[block]))
    return Trace(block_tokens, times, tokens, offsets, blocks)


def previous_positions(blocks: NDArray[np.int32]) -> NDArray[np.int32]:
    """int32[references]: where each block stood the last time before, -1 if never."""
    order = np.argsort(blocks, kind="stable").astype(np.int32)
    same = blocks[order[1:]] == blocks[order[:-1]]
    previous = np.full(len(blocks), -1, dtype=np.int32)
    previous[order[1:][same]] = order[:-1][same]
    return previous


def _numbered(ids: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
    """The distinct ids in the order of their first appearance, and each id's number in it."""
    found, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)
    number = np.empty(len(found), dtype=np.int32)
    number[by_appearance] = np.arange(len(found), dtype=np.int32)
    return found[by_appearance], number[inverse]


def _not_chained(offsets: NDArray[np.int64], blocks: NDArray[np.int32]) -> tuple[int, int] | None:
    """A request and its block that followed another block in an earlier request."""
    parents = np.empty_like(blocks)
    parents[1:] = blocks[:-1]
    parents[offsets[:-1][offsets[:-1] < len(blocks)]] = -1
    parent_of = np.full(int(blocks.max(initial=-1)) + 1, -2, dtype=np.int32)
    # Of several the last one stands, so that others differ from it.
    parent_of[blocks] = parents
    wrong = np.flatnonzero(parent_of[blocks] != parents)
    if not len(wrong):
        return None
    block = int(blocks[wrong[0]])
    places = np.flatnonzero(blocks == block)
    second = places[parents[places] != parents[places[0]]][0]
    return int(np.searchsorted(offsets, second, side="right")) - 1, block
