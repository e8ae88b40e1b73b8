"""Traces for tests: random trees of prompts, and a brute-force LRU to compare with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from kvshelf.plan.trace import Trace, make_trace

BLOCK_TOKENS = 16


def trace_of(requests: Sequence[Sequence[int]], seconds: Sequence[float] | None = None) -> Trace:
    """Requests by their blocks; one every 10 seconds."""
    times = [10.0 * i for i in range(len(requests))] if seconds is None else seconds
    return make_trace(
        BLOCK_TOKENS,
        times,
        [BLOCK_TOKENS * len(blocks) + 3 for blocks in requests],
        [len(blocks) for blocks in requests],
        [block for blocks in requests for block in blocks],
    )


def blocks_of(trace: Trace) -> list[list[int]]:
    bounds = zip(trace.offsets[:-1], trace.offsets[1:], strict=True)
    return [trace.blocks[begin:end].tolist() for begin, end in bounds]


@st.composite
def traces(draw: st.DrawFn, requests_max: int = 30, length_max: int = 8) -> Trace:
    """Each request begins as an earlier one does, for some of its length, and goes on alone."""
    requests: list[list[int]] = []
    fresh = 1000
    for _ in range(draw(st.integers(1, requests_max))):
        earlier = draw(st.sampled_from(requests)) if requests else []
        shared = earlier[: draw(st.integers(0, len(earlier)))]
        own = draw(st.integers(0, max(0, length_max - len(shared))))
        requests.append(shared + list(range(fresh, fresh + own)))
        fresh += own
    return trace_of(requests)


def brute_force_lru(trace: Trace, capacity: int) -> int:
    """Hits by a list of blocks in the order of their last use, the head of a request first."""
    shelf: list[int] = []
    hits = 0
    for blocks in blocks_of(trace):
        there = [block in shelf for block in blocks]
        hits += there.index(False) if False in there else len(there)
        shelf = (blocks + [block for block in shelf if block not in blocks])[:capacity]
    return hits


def write_mooncake(path: Path, trace: Trace) -> Path:
    lines = [
        json.dumps(
            {
                "timestamp": int(1000 * seconds),
                "input_length": int(tokens),
                "output_length": 5,
                "hash_ids": blocks,
            }
        )
        for seconds, tokens, blocks in zip(
            trace.seconds, trace.prompt_tokens, blocks_of(trace), strict=True
        )
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def conversations(requests: int, seed: int = 0) -> Trace:
    """A fixed trace of turns of 20 conversations over two system prompts."""
    random = np.random.default_rng(seed)
    turns: dict[int, list[int]] = {}
    fresh = 100
    made = []
    for _ in range(requests):
        who = int(random.integers(20))
        blocks = turns.get(who) or [who % 2 * 10, who % 2 * 10 + 1]
        grow = int(random.integers(0, 4))
        blocks = blocks + list(range(fresh, fresh + grow))
        fresh += grow
        turns[who] = blocks if len(blocks) < 12 else []
        made.append(blocks)
    return trace_of(made)
