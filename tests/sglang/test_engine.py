"""Real SGLang engines on a CPU: the second one answers from the first one's chunks, or computes.

The first engine's answers are of an empty shelf: what SGLang says without storage.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness.engines import LOGPROB_TOLERANCE, make_prompt
from tests.harness.faulty_calls import FaultyCalls, Rule, why_no_calls
from tests.harness.sglang_engines import (
    PAGE_TOKENS,
    SglangAnswer,
    SglangProcess,
    sglang_arguments,
    storage_config,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PAGES = 25
PROMPT_TOKENS = PAGES * PAGE_TOKENS
# A prompt's last token is always computed, and with it the page that it is in.
LOADED_TOKENS = PROMPT_TOKENS - PAGE_TOKENS
CASES = ("sound", "flipped", "short", "foreign", "absent", "empty", "hung")
BAD_PAGE = 9


@dataclass
class Site:
    """Two engines on one shelf; the first has ended.

    Attributes:
        answers: the first engine's, by case.
        files: chunk files of each case's prompt, in the order of its pages.
    """

    second: SglangProcess
    faults: FaultyCalls
    answers: dict[str, SglangAnswer] = field(default_factory=dict)
    files: dict[str, list[Path]] = field(default_factory=dict)


def chunk_files(shelf: Path) -> set[Path]:
    return set(shelf.rglob("*.kv"))


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def prompt_of(case: str) -> list[int]:
    return make_prompt(100 + CASES.index(case), PROMPT_TOKENS)


def fill(engine: SglangProcess, shelf: Path, site: Site) -> None:
    """Ask every case's prompt and see which files come: a page is stored after those before it."""
    for case in CASES:
        before = chunk_files(shelf)
        site.answers[case] = engine.ask(prompt_of(case))
        assert site.answers[case].storage_tokens == 0
        wait_for(lambda before=before: len(chunk_files(shelf) - before) == PAGES)
        site.files[case] = sorted(chunk_files(shelf) - before)


def page_files(files: list[Path], prompt: list[int]) -> list[Path]:
    """The files in the order of the prompt's pages, by SGLang's own hashes."""
    from sglang.srt.mem_cache.utils import get_hash_str

    by_hash = {path.name.split("-")[0]: path for path in files}
    hashes = get_hash_str(prompt, None, page_size=PAGE_TOKENS)
    return [by_hash[each] for each in hashes]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Site]:
    reason = why_no_calls()
    if reason:
        pytest.skip(reason)
    if importlib.metadata.version("sglang") < "0.5.23":
        pytest.skip("engines of older releases ask Triton for a GPU's driver")
    folder = tmp_path_factory.mktemp("sglang")
    shelf = folder / "shelf"
    limits = {"load_timeout_seconds": 4, "load_stall_seconds": 2, "lookup_timeout_seconds": 2}
    config = storage_config(shelf, evict=False, **limits)
    arguments = sglang_arguments(tiny_model, "dynamic", config)
    faults = FaultyCalls(folder / "rules", shelf)
    first = SglangProcess("first", arguments, folder / "first.log")
    second = SglangProcess("second", arguments, folder / "second.log")
    second.environment = faults.environment()
    made = Site(second, faults)
    with first:
        fill(first, shelf, made)
    for case in CASES:
        made.files[case] = page_files(made.files[case], prompt_of(case))
    with second:
        yield made
        faults.set()


def damage(site: Site, case: str) -> None:
    file = site.files[case][BAD_PAGE]
    content = file.read_bytes()
    if case == "flipped":  # in each 64 bytes of KV the highest bit of an exponent
        payload = bytearray(content)
        payload[4099::64] = bytes(byte ^ 0x40 for byte in payload[4099::64])
        file.write_bytes(payload)
    elif case == "short":
        file.write_bytes(content[: len(content) // 2])
    elif case == "foreign":
        file.write_bytes(site.files["sound"][BAD_PAGE].read_bytes())
    elif case == "absent":
        file.unlink()
    elif case == "empty":
        file.write_bytes(b"")
    elif case == "hung":
        site.faults.set(Rule("read", "hang", path=str(file)))


@pytest.mark.parametrize("case", CASES)
def test_the_second_engine_answers_as_the_first(site: Site, case: str) -> None:
    damage(site, case)
    answer = site.second.ask(prompt_of(case))
    assert answer.difference(site.answers[case]) <= LOGPROB_TOLERANCE
    good_pages = LOADED_TOKENS // PAGE_TOKENS if case == "sound" else BAD_PAGE
    assert answer.storage_tokens == good_pages * PAGE_TOKENS, site.second.log_tail()
    site.faults.set()


def test_a_damaged_chunk_is_stored_again(site: Site) -> None:
    file = site.files["flipped"][BAD_PAGE]
    wait_for(file.exists)
    site.second.flush()
    answer = site.second.ask(prompt_of("flipped"))
    assert answer.storage_tokens == LOADED_TOKENS
    assert answer.difference(site.answers["flipped"]) <= LOGPROB_TOLERANCE
