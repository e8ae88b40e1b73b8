"""An engine that audits finds a chunk with another prompt's content, and nothing else.

One shelf serves all tests of this file, in order of their definition.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from demo.damage import chunk_files

from tests.e2e.asking import ask, await_files, check
from tests.harness.engines import CHUNK_TOKENS, Answer, EngineProcess, engine_arguments, make_prompt
from tests.harness.forge import forge, payload_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CHUNKS = 6  # of each prompt; see conftest.py


class Site:
    """One shelf, and engines on it, one after the other."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.shelf = folder / "shelf"
        self.shelf.mkdir()

    def engine(self, name: str, vllm: dict[str, object], **extra: object) -> EngineProcess:
        arguments = engine_arguments(self.model, self.shelf, **extra)
        return EngineProcess(name, arguments | vllm, self.folder / f"{name}.log")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Site:
    return Site(tmp_path_factory.mktemp("audit"), tiny_model)


@pytest.fixture(scope="module")
def stored(site: Site, prompts: list[list[int]], truth: list[Answer]) -> list[list[Path]]:
    """The chunk files of each prompt, in the order of their tokens, stored by an engine."""
    files: list[list[Path]] = []
    with site.engine("first", {}) as engine:
        for count, prompt in enumerate(prompts, 1):
            before = chunk_files(site.shelf)
            check(ask(engine, [prompt]), truth[count - 1 : count])
            new = await_files(site.shelf, count * CHUNKS) - before
            # Position i of a request is used i milliseconds before its first one.
            files.append(sorted(new, key=lambda path: -path.stat().st_atime_ns))
        assert engine.stop()
    return files


def results(engine: EngineProcess, done: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Audits by result, once enough are over; reports come with steps."""
    deadline = time.monotonic() + 60
    while True:
        engine.generate([make_prompt(1, 8)], tokens=1)
        found = {
            match[1]: value
            for name, value in engine.metrics("kvshelf:audit_chunks").items()
            if (match := re.search(r"total\{result=(\w+)\}", name))
        }
        if done(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_a_sound_shelf_has_no_difference(
    site: Site, stored: list[list[Path]], prompts: list[list[int]], truth: list[Answer]
) -> None:
    """In parts, and several requests in one batch."""
    before = {path: path.stat().st_ino for path in chunk_files(site.shelf)}
    vllm = {"max_num_batched_tokens": 200, "max_num_seqs": 3}
    with site.engine("sound", vllm, audit_percent=100) as engine:
        answers = engine.generate(prompts)
        assert check(answers, truth) == [0] * len(prompts)
        found = results(engine, lambda f: sum(f.values()) == CHUNKS * len(prompts))
        assert engine.stop()
    assert set(found) <= {"equal", "within_tolerance"}
    assert {path: path.stat().st_ino for path in chunk_files(site.shelf)} == before


def test_an_engine_that_audits_half_loads_the_other_half(
    site: Site, stored: list[list[Path]], prompts: list[list[int]], truth: list[Answer]
) -> None:
    with site.engine("half", {}, audit_percent=50) as engine:
        cached: list[int] = []
        while len(set(cached)) < 2 and len(cached) < 60:  # which requests is drawn at the start
            cached += check(ask(engine, prompts[:1]), truth[:1])
            engine.reset_prefix_cache()
        audited = engine.metrics("kvshelf:audit_tokens_total")["kvshelf:audit_tokens_total"]
        assert engine.stop()
    assert set(cached) == {0, CHUNKS * CHUNK_TOKENS}
    assert audited == cached.count(0) * CHUNKS * CHUNK_TOKENS


def test_a_chunk_with_another_prompts_content_is_found(
    site: Site, stored: list[list[Path]], prompts: list[list[int]], truth: list[Answer]
) -> None:
    """Its key, its place and its checksums are right: loaded, it would answer wrongly."""
    wrong, other = stored[0][3], stored[1][3]
    forge(wrong, payload_of(other))
    with site.engine("finder", {}, audit_percent=100, audit_failures_max=2) as engine:
        assert check(ask(engine, prompts), truth) == [0] * len(prompts)
        found = results(engine, lambda f: sum(f.values()) == CHUNKS * len(prompts))
        assert found.pop("different") == 1
        assert set(found) <= {"equal", "within_tolerance"}
        assert engine.metrics("kvshelf:audit_off") == {"kvshelf:audit_off": 0}
        assert not wrong.exists()
        assert chunk_files(site.shelf) == {p for row in stored for p in row} - {wrong}
        (line,) = [text for text in engine.log.read_text().splitlines() if "audit: chunk" in text]
        name = wrong.name.split("-")[0]
        assert "ERROR" in line and name in line and wrong.parts[-4] in line and "rank 0" in line
        # One more is enough.
        forge(stored[2][0], payload_of(other))
        engine.reset_prefix_cache()
        check(ask(engine, prompts[2:]), truth[2:])
        results(engine, lambda f: f["different"] == 2)
        assert engine.metrics("kvshelf:audit_off") == {"kvshelf:audit_off": 1}
        files = chunk_files(site.shelf)
        engine.reset_prefix_cache()
        assert check(ask(engine, prompts), truth) == [0] * len(prompts)
        assert engine.stop()
        assert engine.log.read_text().count("kvshelf is off in this engine") == 1
    assert chunk_files(site.shelf) == files  # nothing was stored either


def test_what_was_found_is_stored_anew_by_the_next_engine(
    site: Site, stored: list[list[Path]], prompts: list[list[int]], truth: list[Answer]
) -> None:
    with site.engine("next", {}) as engine:
        check(ask(engine, prompts), truth)
        await_files(site.shelf, CHUNKS * len(prompts))
        engine.reset_prefix_cache()
        assert check(ask(engine, prompts), truth) == [CHUNKS * CHUNK_TOKENS] * len(prompts)
        assert engine.stop()
