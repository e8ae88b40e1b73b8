"""Formats of traces, and what is said about bad ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings

from kvshelf.plan.lru import lru_curve
from kvshelf.plan.read import read_trace
from kvshelf.plan.trace import Trace, TraceError
from tests.plan.traces import BLOCK_TOKENS, blocks_of, traces, write_mooncake


@settings(deadline=None, max_examples=50)
@given(traces())
def test_mooncake_there_and_back(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = write_mooncake(tmp_path_factory.mktemp("trace") / "t.jsonl", trace)
    read = read_trace(path, block_tokens=BLOCK_TOKENS)
    assert blocks_of(read) == blocks_of(trace)
    assert read.seconds.tolist() == trace.seconds.tolist()
    assert read.prompt_tokens.tolist() == trace.prompt_tokens.tolist()


def test_requests_are_put_in_order_of_time_and_cut_to_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [(3000, 1100, [7, 8, 9]), (1000, 1024, [7, 8]), (2000, 100, [4])]
    path.write_text(
        "\n".join(
            json.dumps({"timestamp": t, "input_length": n, "hash_ids": ids}) for t, n, ids in rows
        )
    )
    trace = read_trace(path)
    assert trace.block_tokens == 512 and trace.seconds.tolist() == [1.0, 2.0, 3.0]
    assert blocks_of(trace) == [[0, 1], [], [0, 1]]
    assert trace.distinct_blocks == 2 and trace.duration_seconds == 2.0
    assert blocks_of(trace.part(1, 3)) == [[], [0, 1]]


GOOD = '{"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[1]", "one JSON object a line"),
        ("{}", "input_length=None: a whole number from 1"),
        ('{"input_length": 1.5}', "input_length=1.5"),
        ('{"input_length": true}', "input_length=True"),
        ('{"input_length": 0, "hash_ids": []}', "input_length=0"),
        ('{"input_length": 512}', "hash_ids=None: a list of 64-bit numbers"),
        ('{"input_length": 512, "hash_ids": ["a"]}', "hash_ids=['a']"),
        ('{"input_length": 512, "hash_ids": [1.5]}', "hash_ids=[1.5]"),
        ('{"input_length": 512, "hash_ids": [9223372036854775808]}', "hash_ids="),
        ('{"input_length": 512, "hash_ids": [1, 2]}', "2 hash_ids for input_length=512"),
        ('{"input_length": 512, "hash_ids": [3], "timestamp": "x"}', "timestamp='x'"),
        ('{"input_length": 512, "hash_ids": [3], "timestamp": NaN}', "timestamp=nan"),
        ('{"input_length": 1024, "hash_ids": [3, 2]}', "chained hashes"),
        ('{"input_length": 512, "hash_ids": [2]}', "chained hashes"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:3: ") and said in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.line == 3


@pytest.mark.parametrize(
    ("tokens", "ids", "block_tokens", "said"),
    [
        (1024, 2, 256, "allows one for each 256 tokens, 4 to 4; for this line 342 to 1023 would"),
        (1100, 3, 256, "4 to 5; for this line 276 to 549 would fit"),
        (512, 1, 256, "2 to 2; for this line 257 or more would fit"),
        (512, 0, 512, "1 to 1; for this line 513 or more would fit"),
        (1000, 5, 256, "3 to 4; for this line 167 to 249 would fit"),
        (2, 9, 1, "2 to 2"),
    ],
)
def test_blocks_of_another_size_are_refused_with_what_fits(
    tmp_path: Path, tokens: int, ids: int, block_tokens: int, said: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"input_length": tokens, "hash_ids": list(range(ids))}))
    with pytest.raises(TraceError) as caught:
        read_trace(path, block_tokens=block_tokens)
    text = str(caught.value)
    assert text.startswith(f"{path}:1: {ids} hash_ids for input_length={tokens}: --block-tokens")
    assert said in text
    sizes = re.search(r"(\d+)(?: to (\d+)| or more) would fit", text)
    for size in filter(None, sizes.groups() if sizes else ()):
        read_trace(path, block_tokens=int(size))
        if int(size) > 1:
            other = int(size) - 1 if size == sizes[1] else int(size) + 1
            with pytest.raises(TraceError):
                read_trace(path, block_tokens=other)


def test_the_last_block_may_have_an_id_or_none(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for ids in ([1, 2], [1, 2, 3]):
        path.write_text(json.dumps({"input_length": 1100, "hash_ids": ids}))
        assert blocks_of(read_trace(path)) == [[0, 1]]


def test_a_request_that_contradicts_an_earlier_one_is_named_by_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    early = '{"timestamp": 0, "input_length": 1024, "hash_ids": [5, 2]}'
    late = '{"timestamp": 9, "input_length": 1024, "hash_ids": [1, 2]}'
    path.write_text(f"{late}\n{early}\n")
    with pytest.raises(TraceError, match=r":1: hash_ids: 2 followed another block before"):
        read_trace(path)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.log"])
def test_an_empty_or_absent_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / name)
    (tmp_path / name).write_text("prompt_tokens\n" if name == "t.csv" else "\n")
    with pytest.raises(TraceError, match="no requests"):
        read_trace(tmp_path / name)
    with pytest.raises(TraceError, match="Is a directory"):
        read_trace(tmp_path, "mooncake")


# As vLLM 0.32 prints them, tokens and text shortened.
LOG = """\
(APIServer pid=77) INFO 12-31 23:59:58 [request_logger.py:65] Received request cmpl-a: params: \
SamplingParams(n=1), lora_request: None.
(APIServer pid=77) DEBUG 12-31 23:59:58 [request_logger.py:52] Request cmpl-a details: prompt: \
'say, prompt_token_ids: [9, 9], prompt_embeds shape: None.\\n', prompt_token_ids: [{a}], \
prompt_embeds shape: None.
INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK
(APIServer pid=77) DEBUG 12-31 23:59:59 [request_logger.py:52] Request cmpl-b details: prompt: \
None, prompt_token_ids: None, prompt_embeds shape: torch.Size([3, 4]).
(APIServer pid=77) DEBUG 01-01 00:00:01 [request_logger.py:52] Request cmpl-c details: prompt: \
'', prompt_token_ids: [{b}], prompt_embeds shape: None.
(APIServer pid=77) DEBUG 01-01 00:00:02 [request_logger.py:52] Request cmpl-d details: prompt: \
'', prompt_token_ids: [], prompt_embeds shape: None.
"""


def test_vllms_log(tmp_path: Path) -> None:
    a = list(range(1, 12))
    b = [*a[:8], 99, 98, 97, 96]
    path = tmp_path / "vllm.log"
    path.write_text(LOG.format(a=", ".join(map(str, a)), b=", ".join(map(str, b))))
    trace = read_trace(path, block_tokens=4)
    assert blocks_of(trace) == [[0, 1], [0, 1, 2], []]
    assert trace.prompt_tokens.tolist() == [11, 12, 0]
    assert trace.duration_seconds == 4  # over New Year's Eve
    assert lru_curve(trace).hits_at(9) == 2


def test_blocks_of_equal_tokens_at_another_place_are_others(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text(LOG.format(a="1, 2, 3, 4", b="5, 6, 3, 4"))
    assert read_trace(path, block_tokens=2).distinct_blocks == 4


def test_a_log_without_token_ids_says_how_to_get_them(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text(LOG.splitlines()[0])
    with pytest.raises(TraceError, match=r"1 requests without token ids: .*VLLM_LOGGING_LEVEL"):
        read_trace(path)
    path.write_text(LOG.format(a="1", b="2").replace("12-31 23:59:58", "13-31 23:59:58"))
    with pytest.raises(TraceError, match=r"vllm.log:2: 13-31 23:59:58: allowed is a time"):
        read_trace(path)


@pytest.mark.parametrize("ids", [",1 2", " ", "1,", "9223372036854775808", "9" * 5000])
def test_token_ids_that_are_none_are_named(tmp_path: Path, ids: str) -> None:
    path = tmp_path / "vllm.log"
    path.write_text(LOG.format(a="1, 2", b=ids))
    with pytest.raises(TraceError, match=r"vllm.log:5: prompt_token_ids='\[.*: a list of 64-bit"):
        read_trace(path)


def read_csv(tmp_path: Path, *lines: str) -> Trace:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines))
    return read_trace(path, block_tokens=100)


def test_a_csv_of_lengths_alone_shares_nothing(tmp_path: Path) -> None:
    trace = read_csv(tmp_path, "prompt_tokens", "250", "250", "99")
    assert blocks_of(trace) == [[0, 1], [2, 3], []]
    assert trace.duration_seconds == 0


def test_a_group_of_a_csv_shares_its_prefix(tmp_path: Path) -> None:
    trace = read_csv(
        tmp_path,
        "seconds,prompt_tokens,prefix_group,prefix_tokens,model",
        "1.5,450,a,250,x",
        "2.5,300,b,,x",
        "3.5,500,a,399,x",
        "4.5,399,a,300,x",
        "5.5,500,b,,x",
        "6.5,300,,,x",
    )
    assert blocks_of(trace) == [
        [0, 1, 2, 3],
        [4, 5, 6],
        [0, 1, 7, 8, 9],
        [0, 1, 7],
        [4, 5, 6, 10, 11],
        [12, 13, 14],
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["tokens", "5"], ":1: columns ['tokens']: prompt_tokens is needed"),
        (["prompt_tokens", "5", "x"], ":3: prompt_tokens='x'"),
        (["prompt_tokens,seconds", "5,now"], ":2: seconds='now': a number"),
        (["prompt_tokens,seconds", "5,nan"], ":2: seconds='nan'"),
        (["seconds,prompt_tokens", "5"], ":2: prompt_tokens=None"),
        (
            ["prompt_tokens,prefix_group,prefix_tokens", "5,a,6"],
            ":2: prefix_tokens=6: at most prompt_tokens=5",
        ),
        (["prompt_tokens,prefix_group,prefix_tokens", "5,a,-1"], ":2: prefix_tokens='-1'"),
        (["prompt_tokens", '"' + "9" * 200_000 + '"'], ":2: no CSV: field larger than"),
    ],
)
def test_a_bad_csv_is_named(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_csv(tmp_path, *lines)
    assert f"t.csv{said}" in str(caught.value)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.log"])
def test_any_bytes_are_an_error_with_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 10)
    with pytest.raises(TraceError, match=name):
        read_trace(tmp_path / name)
