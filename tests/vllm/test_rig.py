"""The rig itself: one engine stores, another loads, and every byte is the function's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf.vllm import compat  # noqa: E402

from .rig import Rig, answer_to, prompt_of, rigs  # noqa: E402


@pytest.mark.parametrize("how", ["plain", "async", "drafts", "two groups", "chunked"])
def test_one_engine_stores_and_another_loads(tmp_path: Path, how: str) -> None:
    if how == "two groups" and not compat.can_recover(2):
        pytest.skip("kvshelf refuses several groups on a vLLM that cannot recover their loads")
    options: dict[str, Any] = {
        "plain": {},
        "async": {"async_scheduling": True},
        "drafts": {"draft": lambda tokens: [*answer_to(tokens, 2), 7]},
        "two groups": {"groups": 2},
        "chunked": {"max_num_batched_tokens": 48},
    }[how]
    one = Rig(tmp_path / "shelf", tmp_path / "model", **options)
    two = Rig(tmp_path / "shelf", tmp_path / "model", **options)
    prompt = prompt_of(200)
    with rigs(one, two):
        assert one.ask(prompt, max_tokens=70) == answer_to(prompt, 70)
        one.settle()
        assert len(one.chunk_files()) >= 3
        name = two.add(prompt, max_tokens=5)
        two.run()
        assert two.answers[name] == answer_to(prompt, 5)
        assert two.cached_tokens(name) == 192
        two.settle()
        assert two.faults(one) == []
        assert one.faults(two) == []
