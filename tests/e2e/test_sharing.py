"""Who shares with whom on one shelf: same model and same ranks, nobody else.

One shelf serves all tests of this file, in order of their definition, so that whatever an engine
could wrongly find is there to be found.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.asking import WHOLE_CHUNKS, ask, await_files, check
from tests.harness.engines import Answer, EngineProcess, engine_arguments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


class Site:
    """One shelf, and engines on it, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shelf = folder / "shelf"
        self.shelf.mkdir()

    def engine(self, name: str, model: Path, ranks: int = 1) -> EngineProcess:
        arguments = engine_arguments(model, self.shelf, ranks)
        return EngineProcess(name, arguments, self.folder / f"{name}.log", ranks)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("sharing"))


@pytest.fixture(scope="module")
def one_rank_files(
    site: Site, tiny_model: Path, prompts: list[list[int]], truth: list[Answer]
) -> set[Path]:
    """What an engine with one rank stored of all prompts, answering rightly."""
    with site.engine("tp1", tiny_model) as engine:
        answers = ask(engine, prompts)
        check(answers, truth)
        assert [answer.cached_tokens for answer in answers] == [0] * len(prompts)
        return await_files(site.shelf, 6 * len(prompts))


@pytest.fixture(scope="module")
def two_rank_files(
    site: Site,
    one_rank_files: set[Path],
    tiny_model: Path,
    prompts: list[list[int]],
    truth: list[Answer],
) -> set[Path]:
    """What an engine with two ranks stored beside it, finding nothing that it could use."""
    with site.engine("tp2-first", tiny_model, ranks=2) as engine:
        answers = ask(engine, prompts)
        check(answers, truth)
        assert [answer.cached_tokens for answer in answers] == [0] * len(prompts)
        return await_files(site.shelf, 3 * 6 * len(prompts)) - one_rank_files


@pytest.fixture(scope="module")
def second_engine(
    site: Site, two_rank_files: set[Path], tiny_model: Path
) -> Iterator[EngineProcess]:
    with site.engine("tp2-second", tiny_model, ranks=2) as engine:
        yield engine
        assert engine.stop(), engine.log_tail()


def test_models_of_one_name_and_shape_but_other_weights_do_not_share(
    site: Site,
    one_rank_files: set[Path],
    other_weights: Path,
    prompts: list[list[int]],
    truth: list[Answer],
) -> None:
    with site.engine("other", other_weights) as engine:
        answers = ask(engine, prompts[:1])
        assert answers[0].cached_tokens == 0
        assert answers[0].tokens != truth[0].tokens  # the models really differ
        files = await_files(site.shelf, len(one_rank_files) + 6)
    theirs = {path.parts[-4] for path in files - one_rank_files}
    assert theirs.isdisjoint({path.parts[-4] for path in one_rank_files})
    shutil.rmtree(site.shelf / theirs.pop())  # its own namespace: counts below are without it


def test_ranks_store_under_their_own_names(two_rank_files: set[Path]) -> None:
    """Each chunk has a file of each rank, in a namespace apart from that of one rank."""
    names = {
        rank: {path.name for path in two_rank_files if path.parts[-3] == rank}
        for rank in ("r0", "r1")
    }
    assert names["r0"] == names["r1"]
    assert len({path.parts[-4] for path in two_rank_files}) == 1


def test_an_engine_with_two_ranks_hits_what_another_one_stored(
    second_engine: EngineProcess, prompts: list[list[int]], truth: list[Answer]
) -> None:
    answers = ask(second_engine, prompts[:1])
    check(answers, truth[:1])
    assert answers[0].cached_tokens == WHOLE_CHUNKS


def test_a_chunk_that_one_rank_lost_is_recomputed_not_mixed(
    second_engine: EngineProcess,
    site: Site,
    two_rank_files: set[Path],
    prompts: list[list[int]],
    truth: list[Answer],
) -> None:
    """Deleted after lookup on one rank only: the other rank's half alone is of no use."""
    for lost in sorted(path for path in two_rank_files if path.parts[-3] == "r1")[::3]:
        lost.unlink()
    second_engine.reset_prefix_cache()
    answers = ask(second_engine, prompts)
    check(answers, truth)
    assert sum(answer.cached_tokens for answer in answers) < len(prompts) * WHOLE_CHUNKS
    await_files(site.shelf, 3 * 6 * len(prompts))  # healed


def test_the_other_ranks_file_is_foreign(
    second_engine: EngineProcess,
    two_rank_files: set[Path],
    prompts: list[list[int]],
    truth: list[Answer],
) -> None:
    """A file restored into the wrong rank's folder has the right size, key and checksums."""
    second_engine.reset_prefix_cache()
    assert ask(second_engine, prompts[:1])[0].cached_tokens == WHOLE_CHUNKS
    for mine in sorted(path for path in two_rank_files if path.parts[-3] == "r0"):
        wrong = Path(str(mine).replace("/r0/", "/r1/"))
        wrong.unlink()
        shutil.copyfile(mine, wrong)
    second_engine.reset_prefix_cache()
    answers = ask(second_engine, prompts)
    check(answers, truth)
    assert [answer.cached_tokens for answer in answers] == [0] * len(prompts)
