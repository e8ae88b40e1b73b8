"""LoRA adapters are known by content, whatever their name, path and id say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.adapters import make_adapter
from tests.e2e.asking import WHOLE_CHUNKS, await_files, check
from tests.harness.engines import CHUNK_TOKENS, Answer, EngineProcess, engine_arguments, make_prompt

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PROMPTS = [make_prompt(seed, 6 * CHUNK_TOKENS + 1) for seed in (400, 401)]
FILES = 6 * len(PROMPTS)
ALL, NONE = [WHOLE_CHUNKS] * len(PROMPTS), [0] * len(PROMPTS)


class Site:
    """One shelf, one adapter folder whose content changes, engines."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.shelf = folder / "shelf"
        self.shelf.mkdir()
        self.path = folder / "adapter"
        self.adapter = {"lora_name": "x", "lora_int_id": 1, "lora_path": str(self.path)}

    def engine(self, name: str, shelf: Path | None) -> EngineProcess:
        arguments = engine_arguments(self.model, shelf)
        arguments |= {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
        return EngineProcess(name, arguments, self.folder / f"{name}.log")

    def ask(self, engine: EngineProcess, **changes: object) -> list[Answer]:
        adapter = {**self.adapter, **changes}
        return [engine.generate([prompt], adapter=adapter)[0] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Site:
    return Site(tmp_path_factory.mktemp("adapters"), tiny_model)


@pytest.fixture(scope="module")
def truth(site: Site) -> dict[int, list[Answer]]:
    """By the seed of the adapter: what an engine without kvshelf answers."""
    answers = {}
    with site.engine("plain", None) as engine:
        for seed in (1, 2):
            make_adapter(site.path, seed)
            answers[seed] = site.ask(engine, lora_name=f"n{seed}", lora_int_id=seed)
    assert answers[1][0].tokens != answers[2][0].tokens
    return answers


@pytest.fixture(scope="module")
def engine(site: Site, truth: dict[int, list[Answer]]) -> Iterator[EngineProcess]:
    make_adapter(site.path, 1)
    with site.engine("first", site.shelf) as made:
        yield made
        assert made.stop(), made.log_tail()


def test_an_adapter_hits_its_own_kv(
    site: Site, engine: EngineProcess, truth: dict[int, list[Answer]]
) -> None:
    assert check(site.ask(engine), truth[1]) == NONE
    await_files(site.shelf, FILES)
    engine.reset_prefix_cache()
    assert check(site.ask(engine), truth[1]) == ALL


def test_new_files_count_once_the_engine_has_loaded_them(
    site: Site, engine: EngineProcess, truth: dict[int, list[Answer]]
) -> None:
    make_adapter(site.path, 2)
    engine.reset_prefix_cache()
    assert check(site.ask(engine), truth[1]) == ALL  # vLLM still has the old ones in memory
    engine.reset_prefix_cache()
    assert check(site.ask(engine, load_inplace=True), truth[2]) == NONE
    await_files(site.shelf, 2 * FILES)
    engine.reset_prefix_cache()
    assert check(site.ask(engine), truth[2]) == ALL


def test_without_a_reset_the_requests_are_left_alone(
    site: Site, engine: EngineProcess, truth: dict[int, list[Answer]]
) -> None:
    """vLLM's prefix cache has KV of the adapter before, under the same hashes."""
    make_adapter(site.path, 1)
    site.ask(engine, load_inplace=True)
    series = engine.metrics("kvshelf:requests_left_alone_total")
    assert sum(series.values()) == len(PROMPTS)
    engine.reset_prefix_cache()
    assert check(site.ask(engine), truth[1]) == ALL
    await_files(site.shelf, 2 * FILES)


def test_another_engine_shares_by_content(
    site: Site, engine: EngineProcess, truth: dict[int, list[Answer]]
) -> None:
    make_adapter(site.path, 2)
    with site.engine("other", site.shelf) as other:
        assert check(site.ask(other), truth[2]) == ALL
