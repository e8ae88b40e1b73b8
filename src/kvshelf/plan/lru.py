"""Exact LRU for every capacity at once, by stack distance in one pass. Pure.

A block's stack distance is its place in the list of all blocks by last use: a shelf that holds
``n`` blocks has it if the distance is at most ``n`` (Mattson, Gecsei, Slutz and Traiger,
"Evaluation techniques for storage hierarchies", 1970). Chains make this cheap. The head of a
request counts as used last (its touches are in that order), and whoever uses a block uses all
before it, so

- those blocks that a request was the last to use are always a tail of its chain;
- a request's chain falls into few runs of blocks that one earlier request was the last to use, and
  the distances within a run follow each other.

So sums are kept by request, not by block: one query of a Fenwick tree a run ("A new data structure
for cumulative frequency tables", 1994).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvshelf.plan.trace import Trace, previous_positions


@dataclass(frozen=True, slots=True, eq=False)
class LruCurve:
    """Hits of a shelf that evicts by LRU, as a function of the blocks that it may hold.

    Attributes:
        hits: int64[distinct blocks + 1], hits of a shelf that holds as many blocks.
    """

    hits: NDArray[np.int64]

    def hits_at(self, capacity_blocks: int) -> int:
        return int(self.hits[min(max(capacity_blocks, 0), len(self.hits) - 1)])


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """Runs of a request's blocks that one earlier request was the last to use: int64[runs] each."""

    request: NDArray[np.int64]
    last_user: NDArray[np.int64]
    length: NDArray[np.int64]


def lru_curve(trace: Trace) -> LruCurve:
    """The hits of all requests at every capacity. Some 5 s a million requests."""
    runs = _runs(trace)
    above = _blocks_above(runs, np.diff(trace.offsets))
    distinct = trace.distinct_blocks
    # A run adds one hit at each of above + 1 ... above + length: differences, summed twice.
    change = np.bincount(above + 1, minlength=distinct + 2)
    change -= np.bincount(above + 1 + runs.length, minlength=distinct + 2)
    return LruCurve(np.cumsum(np.cumsum(change))[: distinct + 1])


def _runs(trace: Trace) -> _Runs:
    of_request = np.repeat(
        np.arange(trace.requests, dtype=np.int32), np.diff(trace.offsets)
    )  # of each reference
    previous = previous_positions(trace.blocks)
    last_user = np.where(previous >= 0, of_request[previous], np.int32(-1))
    del previous
    begins = np.empty(len(last_user), dtype=bool)
    begins[:1] = True
    begins[1:] = (last_user[1:] != last_user[:-1]) | (of_request[1:] != of_request[:-1])
    first = np.flatnonzero(begins)
    length = np.diff(np.append(first, len(last_user)))
    used = last_user[first] >= 0
    first, length = first[used], length[used]
    return _Runs(of_request[first].astype(np.int64), last_user[first].astype(np.int64), length)


def _blocks_above(runs: _Runs, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[runs]: blocks used later than the first of each run, before its request came.

    Those are all blocks of the requests between, less what other runs took from them since.
    """
    before = np.concatenate([[0], np.cumsum(lengths)])
    between: NDArray[np.int64] = before[runs.request] - before[runs.last_user + 1]
    return between - _taken(runs, len(lengths))


def _taken(runs: _Runs, requests: int) -> NDArray[np.int64]:
    """int64[runs]: lengths of the runs of earlier requests whose last user is a later one."""
    tree = [0] * (requests + 1)
    answer = []
    pending: list[tuple[int, int]] = []
    request = -1
    # Places from the end: the sum over all later users is then a sum over a prefix.
    places = (requests - runs.last_user).tolist()
    for now, place, length in zip(runs.request.tolist(), places, runs.length.tolist(), strict=True):
        if now != request:
            for start, taken in pending:
                position = start
                while position <= requests:
                    tree[position] += taken
                    position += position & -position
            pending.clear()
            request = now
        pending.append((place, length))
        total, position = 0, place - 1
        while position:
            total += tree[position]
            position &= position - 1
        answer.append(total)
    return np.array(answer, dtype=np.int64)
