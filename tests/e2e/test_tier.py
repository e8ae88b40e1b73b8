"""vLLM's multi-tier offloading with our tier, on real engines of one and of two ranks.

Block memory and host memory are both the CPU's (tests/harness/host_memory.py); the rest is vLLM's
own. One shelf serves all tests of this file, in order of their definition.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from demo.damage import flip_bit

from kvshelf.cli.main import main
from tests.e2e.asking import WHOLE_CHUNKS, ask, await_anew, await_files, check
from tests.harness.engines import CHUNK_TOKENS, Answer, EngineProcess, engine_arguments
from tests.harness.host_memory import tier_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


class Site:
    """One shelf, and engines on it, one after the other."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.shelf = folder, model, folder / "shelf"

    def tiered(self, name: str, ranks: int = 1, *, canonical: bool = True) -> EngineProcess:
        arguments = engine_arguments(self.model, None, ranks)
        arguments["kv_transfer_config"] = tier_config(
            self.shelf, chunk_tokens=CHUNK_TOKENS, canonical=canonical
        )
        return EngineProcess(name, arguments, self.folder / f"{name}.log", ranks)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Site:
    return Site(tmp_path_factory.mktemp("tier"), tiny_model)


def test_one_rank_stores_through_host_memory(
    site: Site, prompts: list[list[int]], truth: list[Answer]
) -> None:
    with site.tiered("one") as engine:
        assert check(ask(engine, prompts), truth) == [0, 0, 0]
        files = await_files(site.shelf, 18)
        assert {path.parent.parent.name for path in files} == {"r0"}
        series = engine.metrics()
        assert series["kvshelf:store_outcomes_total{outcome=published}"] == 18
        assert engine.stop(), engine.log_tail()


def test_two_ranks_load_what_one_stored_and_store_what_failed(
    site: Site, prompts: list[list[int]], truth: list[Answer]
) -> None:
    """Also if a chunk is bad: that one is computed, by both ranks, and stored anew."""
    files = await_files(site.shelf, 18)
    bad = sorted(files)[7]
    flip_bit(bad, ())
    spoiled = bad.read_bytes()
    with site.tiered("two", ranks=2) as engine:
        cached = check(ask(engine, prompts), truth)
        series = engine.metrics()
        assert series["kvshelf:load_failures_total{cause=corrupt}"] == 1
        assert sorted(cached)[1:] == [WHOLE_CHUNKS] * 2 and min(cached) < WHOLE_CHUNKS
        await_anew(bad, spoiled)
        assert engine.stop(), engine.log_tail()
    assert await_files(site.shelf, 18) == files


def test_one_rank_loads_what_two_stored(
    site: Site, prompts: list[list[int]], truth: list[Answer]
) -> None:
    with site.tiered("one-again") as engine:
        assert check(ask(engine, prompts), truth) == [WHOLE_CHUNKS] * 3
        series = engine.metrics()
        assert series["kvshelf:load_chunks_total"] == 18
        assert "kvshelf:load_failures_total{cause=corrupt}" not in series
        assert engine.stop(), engine.log_tail()


def test_without_the_canonical_layout_two_ranks_share_with_nobody(
    site: Site, prompts: list[list[int]], truth: list[Answer]
) -> None:
    with site.tiered("direct", ranks=2, canonical=False) as engine:
        assert check(ask(engine, prompts[:1]), truth[:1]) == [0]
        await_files(site.shelf, 24)
        assert engine.stop(), engine.log_tail()


def test_the_direct_path_shares_nothing_with_a_tier_and_the_difference_is_told(
    site: Site,
    prompts: list[list[int]],
    truth: list[Answer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path.parts[-4] for path in await_files(site.shelf, 24)}
    arguments = engine_arguments(site.model, site.shelf)
    with EngineProcess("plain", arguments, site.folder / "plain.log") as engine:
        assert check(ask(engine, prompts[:1]), truth[:1]) == [0]
        files = await_files(site.shelf, 30)
        assert engine.stop(), engine.log_tail()
    (mine,) = {path.parts[-4] for path in files} - before
    for other in before:
        fields = differences(site.shelf, mine, other, capsys)
        assert "tier" in fields, fields
    assert main(["diff", os.fspath(site.shelf), mine, before.pop()]) == 1
    assert "a tier keeps rows of vLLM's host memory" in capsys.readouterr().out


def differences(root: Path, a: str, b: str, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    assert main(["diff", os.fspath(root), "--json", a, b]) == 1
    return [each["field"] for each in json.loads(capsys.readouterr().out)["differences"]]
