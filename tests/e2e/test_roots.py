"""A real engine over two roots: the same answers, hits after a restart, and one root that fails."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from demo.damage import chunk_files

from tests.e2e.asking import SHORT_LIMITS, WHOLE_CHUNKS, ask, check
from tests.harness.engines import CHUNK_TOKENS, Answer, EngineProcess, engine_arguments
from tests.harness.faulty_mount import FaultyMount, why_not

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_two_roots_serve_one_engine(
    tiny_model: Path,
    tmp_path: Path,
    prompts: list[list[int]],
    truth: list[Answer],
) -> None:
    """The second root is a mount that can hang, where there is one; else its files go, no more."""
    can_hang = why_not() is None
    mount = FaultyMount(tmp_path / "m") if can_hang else None
    roots = [tmp_path / "one", (mount.path if mount else tmp_path) / "two"]
    arguments = engine_arguments(tiny_model, roots[0], **SHORT_LIMITS)
    extra = arguments["kv_transfer_config"]["kv_connector_extra_config"]  # type: ignore[index]
    extra["shared_storage_path"] = [str(root) for root in roots]
    try:
        with EngineProcess("first", arguments, tmp_path / "first.log") as engine:
            assert check(ask(engine, prompts), truth) == [0] * len(prompts)
            deadline = time.monotonic() + 30
            while sum(len(chunk_files(root)) for root in roots) < 6 * len(prompts):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert all(len(chunk_files(root)) > 2 for root in roots)
        extra["shared_storage_path"].reverse()  # the order does not matter
        with EngineProcess("second", arguments, tmp_path / "second.log") as engine:
            _after_a_restart(engine, roots, mount, prompts, truth)
    finally:
        if mount is not None:
            mount.thaw()
            mount.close()


def _after_a_restart(
    engine: EngineProcess,
    roots: list[Path],
    mount: FaultyMount | None,
    prompts: list[list[int]],
    truth: list[Answer],
) -> None:
    def ask_again() -> list[int]:
        engine.reset_prefix_cache()
        time.sleep(0.6)  # past what the scheduler still believes
        return check(ask(engine, prompts), truth)

    def until_all_hit() -> None:
        deadline = time.monotonic() + 60
        while min(ask_again()) < WHOLE_CHUNKS:
            assert time.monotonic() < deadline, engine.log_tail()

    assert ask_again() == [WHOLE_CHUNKS] * len(prompts)
    for path in chunk_files(roots[1]):
        path.unlink()
    found = ask_again()
    assert min(found) < WHOLE_CHUNKS  # computed, and stored anew
    until_all_hit()
    if mount is None:
        shutil.rmtree(roots[1])
        ask_again()
        return
    mount.freeze()
    series = f"kvshelf:breaker_state{{root={roots[1]},side=reading}}"
    deadline = time.monotonic() + 90
    rng = random.Random(7)
    while engine.metrics().get(series) != 2:
        assert time.monotonic() < deadline, engine.log_tail()
        engine.generate([[rng.randrange(3, 250) for _ in range(2 * CHUNK_TOKENS + 1)]])
        ask_again()
    good = f"kvshelf:breaker_state{{root={roots[0]},side=reading}}"
    assert engine.metrics()[good] == 0
    assert max(ask_again()) < WHOLE_CHUNKS and engine.alive()
    mount.thaw()
    until_all_hit()
