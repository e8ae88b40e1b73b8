"""Weights that change in running engines: no answer from old KV, none stored under a wrong name,
and hits between engines of equal weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.asking import WHOLE_CHUNKS, ask, await_files, check
from tests.harness.engines import CHUNK_TOKENS, Answer, EngineProcess, engine_arguments, make_prompt
from tests.harness.tiny_model import make_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TRAINER = "tests.e2e.trainer"
ROOT = Path(__file__).parents[2]
PROMPTS = [make_prompt(seed, 6 * CHUNK_TOKENS + 1) for seed in (300, 301)]
FILES = 6 * len(PROMPTS)  # of one epoch


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Engines import this package, and take functions as RPCs."""
    before = dict(os.environ)
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    yield
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Site:
    """Two sets of weights of one model, the right answers of each, and a shelf."""

    models: tuple[Path, Path]
    truth: tuple[list[Answer], list[Answer]]
    folder: Path

    @property
    def shelf(self) -> Path:
        return self.folder / "shelf"

    def engine(self, name: str, number: int = 0, **extra: object) -> EngineProcess:
        arguments = engine_arguments(self.models[number], self.shelf, **extra)
        return EngineProcess(name, arguments, self.folder / f"{name}.log")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "shelf").mkdir()
    models = tuple(
        make_tiny_model(folder / name / "tiny", seed) for name, seed in (("w1", 20), ("w2", 21))
    )
    truth = []
    for number, model in enumerate(models):
        log = folder / f"plain{number}.log"
        with EngineProcess("plain", engine_arguments(model, None), log) as engine:
            truth.append(ask(engine, PROMPTS))
    assert truth[0][0].tokens != truth[1][0].tokens
    return Site((models[0], models[1]), (truth[0], truth[1]), folder)


@pytest.fixture(scope="module")
def trained(site: Site) -> Iterator[EngineProcess]:
    """An engine whose weights change."""
    with site.engine("trained") as engine:
        yield engine
        assert engine.stop(), engine.log_tail()


@pytest.fixture(scope="module")
def untouched(site: Site) -> Iterator[EngineProcess]:
    """A replica that keeps the weights that it started with."""
    with site.engine("untouched") as engine:
        yield engine
        assert engine.stop(), engine.log_tail()


ALL = [WHOLE_CHUNKS] * len(PROMPTS)
NONE = [0] * len(PROMPTS)


def test_a_reset_and_an_rpc_without_a_change_keep_the_hits(
    site: Site, trained: EngineProcess
) -> None:
    assert check(ask(trained, PROMPTS), site.truth[0]) == NONE
    await_files(site.shelf, FILES)
    trained.reset_prefix_cache(connector=True)
    assert check(ask(trained, PROMPTS), site.truth[0]) == ALL
    trained.rpc(f"{TRAINER}:nothing")
    trained.reset_prefix_cache()
    assert check(ask(trained, PROMPTS), site.truth[0]) == ALL


@pytest.mark.parametrize("connector", [True, False])
def test_after_a_reload_nothing_comes_from_old_weights(
    site: Site, trained: EngineProcess, connector: bool
) -> None:
    trained.rpc(f"{TRAINER}:reload", path=str(site.models[1]))
    trained.reset_prefix_cache(connector=connector)
    expected = NONE if connector else ALL  # the second time round it has been stored
    assert check(ask(trained, PROMPTS), site.truth[1]) == expected
    await_files(site.shelf, 2 * FILES)
    trained.rpc(f"{TRAINER}:reload", path=str(site.models[0]))
    trained.reset_prefix_cache(connector=connector)
    assert check(ask(trained, PROMPTS), site.truth[0]) == ALL


def test_a_replica_of_the_old_weights_never_meets_kv_of_the_new(
    site: Site, untouched: EngineProcess
) -> None:
    """Both epochs are on the shelf, in one namespace."""
    assert check(ask(untouched, PROMPTS), site.truth[0]) == ALL


def test_replicas_updated_to_the_same_weights_share(
    site: Site, trained: EngineProcess, untouched: EngineProcess
) -> None:
    untouched.rpc(f"{TRAINER}:reload", path=str(site.models[1]))
    untouched.reset_prefix_cache(connector=True)
    assert check(ask(untouched, PROMPTS), site.truth[1]) == ALL


def test_an_empty_cache_needs_no_second_reset(site: Site, untouched: EngineProcess) -> None:
    """As trainers do: empty the cache, update, go on."""
    untouched.reset_prefix_cache(connector=True)
    untouched.rpc(f"{TRAINER}:reload", path=str(site.models[0]))
    assert check(ask(untouched, PROMPTS), site.truth[0]) == ALL


def test_a_few_rows_written_in_place_are_another_epoch(site: Site, trained: EngineProcess) -> None:
    files = await_files(site.shelf, 2 * FILES)
    trained.rpc(f"{TRAINER}:set_rows", rows=3, factor=2.0)
    trained.reset_prefix_cache()
    first = ask(trained, PROMPTS)
    assert [each.cached_tokens for each in first] == NONE
    await_files(site.shelf, 3 * FILES)
    trained.reset_prefix_cache()
    assert check(ask(trained, PROMPTS), first) == ALL
    trained.rpc(f"{TRAINER}:set_rows", rows=3, factor=0.5)
    trained.reset_prefix_cache()
    assert check(ask(trained, PROMPTS), site.truth[0]) == ALL
    assert files <= await_files(site.shelf, 3 * FILES)


def test_one_tensor_of_a_packed_layer_is_another_epoch(site: Site, trained: EngineProcess) -> None:
    """vLLM's CPU build keeps linear layers where no parameter shows them."""
    name = "model.layers.2.self_attn.o_proj.weight"
    trained.rpc(f"{TRAINER}:reload_one", path=str(site.models[1]), name=name)
    trained.reset_prefix_cache()
    assert [each.cached_tokens for each in ask(trained, PROMPTS)] == NONE


def test_without_a_reset_nothing_is_stored_or_loaded(site: Site, trained: EngineProcess) -> None:
    """vLLM's own cache then still has old KV, and what is computed after it is a mixture."""
    files = await_files(site.shelf, 4 * FILES)
    trained.rpc(f"{TRAINER}:reload", path=str(site.models[0]))
    other = make_prompt(999, 6 * CHUNK_TOKENS + 1)
    assert ask(trained, [other])[0].cached_tokens == 0
    assert ask(trained, PROMPTS)[0].cached_tokens == WHOLE_CHUNKS  # vLLM's
    series = trained.metrics("kvshelf:store_outcomes_total")
    assert series["kvshelf:store_outcomes_total{outcome=weights}"] > 0
    trained.reset_prefix_cache()
    assert check(ask(trained, PROMPTS), site.truth[0]) == ALL
    assert await_files(site.shelf, 4 * FILES) == files
