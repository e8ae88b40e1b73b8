"""What is read from vLLM's scheduler side, on every version."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf.vllm import compat  # noqa: E402


def side(*groups: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(kv_group_configs=groups))


def group(tokens: int, window: int | None, *, is_new: bool = False) -> Any:
    made = SimpleNamespace(tokens_per_chunk=tokens, sliding_window_size_in_chunks=window)
    if is_new:
        made.load_window_size_in_chunks = lambda end: None if window is None else window + end % 2
    return made


@pytest.mark.parametrize("is_new", [False, True], ids=["before 0.30", "since 0.30"])
def test_only_what_is_loaded_counts_as_hit(is_new: bool) -> None:
    """Of a sliding window, what lies in it, and of a state (a window of one chunk) the last."""
    groups = [group(100, window, is_new=is_new) for window in (None, 5, 1)]
    assert compat.hit_ranges(side(*groups), 200, 3800) == [
        range(2, 40),
        range(35, 40),
        range(39, 40),
    ]
    assert compat.hit_ranges(side(*groups), 3700, 250) == [range(37, 40)] * 2 + [range(39, 40)]
    if is_new:
        assert compat.hit_ranges(side(groups[1]), 200, 3701) == [range(34, 40)]


def test_the_payloads_of_events_are_bounded() -> None:
    payloads = {bytes([i]): object() for i in range(10)}
    tracker = SimpleNamespace(_pending_event_metadata=payloads)
    compat.bound_event_payloads(SimpleNamespace(_events_tracker=tracker), 4)
    assert list(payloads) == [bytes([i]) for i in range(6, 10)]
    compat.bound_event_payloads(SimpleNamespace(), 4)  # of a version that keeps none
