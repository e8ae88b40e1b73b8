"""An engine whose chunks are packed answers as one whose chunks are not, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.asking import WHOLE_CHUNKS, ask, await_files
from tests.harness.codec import PACKED_VERSION, VERSION, decode
from tests.harness.engines import Answer, EngineProcess, engine_arguments
from tests.harness.forge import payload_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def answers_from_files(
    tiny_model: Path, prompts: list[list[int]], folder: Path, compress: str
) -> tuple[list[Answer], dict[str, Path]]:
    """Answers of an engine that loads what another one stored, and the files by name."""
    folder.mkdir()
    arguments = engine_arguments(tiny_model, folder / "shelf", compress=compress)
    arguments["dtype"] = "bfloat16"
    (folder / "shelf").mkdir()
    with EngineProcess("first", arguments, folder / "first.log") as engine:
        ask(engine, prompts)
        files = await_files(folder / "shelf", 6 * len(prompts))
    with EngineProcess("second", arguments, folder / "second.log") as engine:
        answers = ask(engine, prompts)
    assert [answer.cached_tokens for answer in answers] == [WHOLE_CHUNKS] * len(prompts)
    return answers, {path.name: path for path in files}


def test_logprobs_through_packed_chunks_are_equal_to_the_last_bit(
    tiny_model: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    packed, packed_files = answers_from_files(tiny_model, prompts, tmp_path / "packed", "on")
    plain, plain_files = answers_from_files(tiny_model, prompts, tmp_path / "plain", "off")
    assert packed_files.keys() == plain_files.keys()
    for name, path in packed_files.items():
        assert decode(path.read_bytes()).version == PACKED_VERSION
        assert decode(plain_files[name].read_bytes()).version == VERSION
        assert payload_of(path) == payload_of(plain_files[name])
        assert path.stat().st_size < 0.8 * plain_files[name].stat().st_size
    assert [answer.tokens for answer in packed] == [answer.tokens for answer in plain]
    assert [answer.logprobs for answer in packed] == [answer.logprobs for answer in plain]
