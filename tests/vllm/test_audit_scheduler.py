"""Audits on vLLM's real scheduler, with our real connector and worker, on every version."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf.vllm import compat  # noqa: E402
from tests.harness.forge import forge, payload_of  # noqa: E402

from .audited import captured  # noqa: E402
from .rig import Rig, answer_to, prompt_of, rigs  # noqa: E402

PROMPTS = [prompt_of(200), [7, *prompt_of(200)[1:]]]


def step_until(rig: Rig, done: Callable[[], bool]) -> None:
    """Reports come with steps, once the auditor's thread has compared."""
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        rig.ask(prompt_of(20))


@pytest.mark.parametrize("failures_max", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_forged_chunk_is_found_and_nothing_else(
    tmp_path: Path, groups: int, failures_max: int, caplog: pytest.LogCaptureFixture
) -> None:
    if not compat.can_recover(groups):
        pytest.skip("kvshelf refuses several groups on a vLLM that cannot recover their loads")
    where = tmp_path / "shelf", tmp_path / "model"
    audit = {"audit_percent": 100, "audit_failures_max": failures_max}
    one = Rig(*where, groups=groups)
    two = Rig(*where, groups=groups, max_num_batched_tokens=80, extra=audit)
    with rigs(one, two), captured(caplog.handler):
        ours: list[Path] = []  # one chunk file of each prompt
        for prompt in PROMPTS:
            known = set(one.chunk_files())
            one.ask(prompt)
            one.settle()
            new = set(one.chunk_files()) - known
            ours.append(min(path for path in new if path.name.endswith("-g0.kv")))
        before = set(one.chunk_files())
        forge(ours[0], payload_of(ours[1]))
        for prompt in PROMPTS:
            name = two.add(prompt, max_tokens=3)
            two.run()
            assert two.answers[name] == answer_to(prompt, 3)
            assert two.cached_tokens(name) == 0
        audits = two.manager().audits
        step_until(two, lambda: audits._failures == 1)
        assert before - set(one.chunk_files()) == {ours[0]}
        (line,) = [r.getMessage() for r in caplog.records if "audit: chunk" in r.getMessage()]
        assert ours[0].name.split("-")[0] in line
        assert audits.is_off == (failures_max == 1)
        two.settle()
        files = set(one.chunk_files())
        two.ask([9, *PROMPTS[0][1:]])
        two.settle()
        assert (set(one.chunk_files()) == files) == audits.is_off
