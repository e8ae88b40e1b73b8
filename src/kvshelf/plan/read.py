"""Reads traces: Mooncake's JSON lines, vLLM's request log, a CSV of lengths.

A million requests are read line by line into flat arrays; nothing is kept of a line.

Sources: "Mooncake: Trading More Storage for Less Computation" (FAST 2025) and its traces; vLLM
``vllm/entrypoints/serve/utils/request_logger.py`` and ``vllm/logger.py``, 0.26 to 0.33.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kvshelf.plan.trace import NotChainedError, Trace, TraceError, make_trace

FORMATS = ("mooncake", "vllm-log", "csv")
# The Mooncake traces hash blocks of so many tokens; kvshelf's chunks are as long as vLLM is told.
MOONCAKE_BLOCK_TOKENS = 512
DEFAULT_BLOCK_TOKENS = 256
_TOKENS_MAX = 100_000_000

# "DEBUG 11-24 15:38:33 [...] Request ID details: prompt: 'text', prompt_token_ids: [1, 2], ...".
# The prompt may itself say "prompt_token_ids: [", so the match must reach the end of the line.
_DETAILS = re.compile(
    r" (?P<time>\d\d-\d\d \d\d:\d\d:\d\d) \[.*\] Request \S+ details: prompt: .*, "
    r"prompt_token_ids: (?P<tokens>\[[0-9, ]*\]|None), prompt_embeds shape: [^,]*\.$"
)
_RECEIVED = re.compile(r" \d\d-\d\d \d\d:\d\d:\d\d \[.*\] Received request \S+: ")
_ADVICE = (
    "allowed is a log of vLLM started with --enable-log-requests and VLLM_LOGGING_LEVEL=DEBUG "
    "(and without --max-log-len), which logs each prompt's token ids"
)
_YEAR_SECONDS = 366 * 86_400


@dataclass(slots=True)
class _Requests:
    """Requests as they are read: flat arrays, 8 bytes an entry."""

    seconds: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    ids: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))

    def add(self, line: int, seconds: float, tokens: int, blocks: int) -> None:
        """A request whose ids were appended to ``ids``."""
        self.seconds.append(seconds)
        self.tokens.append(tokens)
        self.counts.append(blocks)
        self.lines.append(line)


def read_trace(path: Path, kind: str = "", block_tokens: int = 0) -> Trace:
    """
    Args:
        kind: one of ``FORMATS``; "" goes by the name: .jsonl, .csv, and anything else is a log.
        block_tokens: tokens of a block; 0 for the format's own: 512 for Mooncake, else 256.

    Raises:
        TraceError: names the file, the line and what is allowed.
    """
    kind = kind or {".jsonl": "mooncake", ".csv": "csv"}.get(path.suffix.lower(), "vllm-log")
    read = {"mooncake": _read_mooncake, "vllm-log": _read_log, "csv": _read_csv}[kind]
    default = MOONCAKE_BLOCK_TOKENS if kind == "mooncake" else DEFAULT_BLOCK_TOKENS
    block_tokens = block_tokens or default
    try:
        requests = read(path, block_tokens)
    except OSError as error:
        raise TraceError(str(path), 0, error.strerror or str(error)) from error
    if not requests.tokens:
        raise TraceError(str(path), 0, "holds no requests")
    try:
        return make_trace(
            block_tokens, requests.seconds, requests.tokens, requests.counts, requests.ids
        )
    except NotChainedError as error:
        allowed = "allowed are chained hashes, where a block's id covers all tokens before it"
        message = f"hash_ids: {error.block} followed another block before: {allowed}"
        raise TraceError(str(path), requests.lines[error.request], message) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, from 1, whatever their bytes."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, line


def _read_mooncake(path: Path, block_tokens: int) -> _Requests:
    requests = _Requests()
    for number, line in _lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(str(path), number, f"no JSON ({error}): one object a line") from error
        if not isinstance(value, dict):
            raise TraceError(str(path), number, "allowed is one JSON object a line")
        tokens = _whole(path, number, "input_length", value.get("input_length"))
        ids: Any = value.get("hash_ids")
        try:
            requests.ids.fromlist(ids)
        except (TypeError, OverflowError) as error:
            message = f"hash_ids={_short(ids)}: a list of 64-bit numbers is allowed"
            raise TraceError(str(path), number, message) from error
        # The last block may have an id though the prompt ends in it, or none.
        if not tokens // block_tokens <= len(ids) <= -(-tokens // block_tokens):
            message = _other_blocks(tokens, len(ids), block_tokens)
            raise TraceError(str(path), number, message)
        milliseconds = value.get("timestamp", 0)
        seconds = _seconds(path, number, "timestamp", milliseconds) / 1e3
        requests.add(number, seconds, tokens, len(ids))
    return requests


def _other_blocks(tokens: int, ids: int, block_tokens: int) -> str:
    """That a request's ids are of blocks of another size, and of which they can be."""
    low = tokens // (ids + 1) + 1
    text = (
        f"{ids} hash_ids for input_length={tokens}: --block-tokens {block_tokens} allows one for "
        f"each {block_tokens} tokens, {tokens // block_tokens} to {-(-tokens // block_tokens)}"
    )
    if ids < 2:
        return f"{text}; for this line {low} or more would fit"
    high = (tokens - 1) // (ids - 1)
    return f"{text}; for this line {low} to {high} would fit" if low <= high else text


def _read_log(path: Path, block_tokens: int) -> _Requests:
    requests = _Requests()
    hidden = 0
    year = latest = 0.0
    for number, line in _lines(path):
        match = _DETAILS.search(line.rstrip())
        if match is None:
            hidden += _RECEIVED.search(line) is not None
            continue
        if match["tokens"] == "None":
            continue  # embeddings: no tokens, no prefix cache
        try:
            # A log has no year: any leap year will do.
            time = datetime.strptime(f"2000-{match['time']} +0000", "%Y-%m-%d %H:%M:%S %z")
        except ValueError as error:
            message = f"{match['time']}: allowed is a time as MM-DD hh:mm:ss"
            raise TraceError(str(path), number, message) from error
        seconds = time.timestamp() + year
        if seconds < latest - _YEAR_SECONDS / 2:  # a new year began
            year += _YEAR_SECONDS
            seconds += _YEAR_SECONDS
        latest = max(latest, seconds)
        try:
            ids = match["tokens"][1:-1]
            tokens = array("q", map(int, ids.split(",") if ids else ()))
        except (ValueError, OverflowError) as error:
            message = (
                f"prompt_token_ids={_short(match['tokens'])}: a list of 64-bit numbers is allowed"
            )
            raise TraceError(str(path), number, message) from error
        chain = _chain(tokens, block_tokens)
        requests.ids.fromlist(chain)
        requests.add(number, seconds, len(tokens), len(chain))
    if not requests.tokens:
        found = f"{hidden} requests without token ids" if hidden else "no requests"
        raise TraceError(str(path), 0, f"{found}: {_ADVICE}")
    return requests


def _chain(tokens: array[int], block_tokens: int) -> list[int]:
    """A 63-bit id for each whole block, which covers all tokens before its end."""
    ids = []
    digest = b""
    for begin in range(0, len(tokens) - block_tokens + 1, block_tokens):
        block = tokens[begin : begin + block_tokens].tobytes()
        digest = hashlib.blake2b(digest + block, digest_size=16).digest()
        ids.append(int.from_bytes(digest[:8], "little") >> 1)
    return ids


def _read_csv(path: Path, block_tokens: int) -> _Requests:
    """Needs the column prompt_tokens; others that it knows: seconds, prefix_group, prefix_tokens.

    Requests of one group begin with the same tokens: as many as both say, all that both have where
    they do not say.
    """
    requests = _Requests()
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        try:
            _read_rows(path, rows, block_tokens, requests)
        except csv.Error as error:
            raise TraceError(str(path), rows.reader.line_num, f"no CSV: {error}") from error
    return requests


def _read_rows(
    path: Path, rows: csv.DictReader[str], block_tokens: int, requests: _Requests
) -> None:
    groups: dict[str, list[int]] = {}
    fresh = 0
    if "prompt_tokens" not in (rows.fieldnames or ()):
        message = (
            f"columns {_short(rows.fieldnames)}: prompt_tokens is needed; seconds, prefix_group "
            "and prefix_tokens may be there"
        )
        raise TraceError(str(path), 1, message)
    for row in rows:
        number = rows.line_num
        tokens = _whole(path, number, "prompt_tokens", row["prompt_tokens"])
        seconds = _seconds(path, number, "seconds", row.get("seconds") or 0)
        group = row.get("prefix_group") or ""
        given = row.get("prefix_tokens") or tokens
        shared = _whole(path, number, "prefix_tokens", given) if group else 0
        if shared > tokens:
            message = f"prefix_tokens={shared}: at most prompt_tokens={tokens}"
            raise TraceError(str(path), number, message)
        blocks = tokens // block_tokens
        ids = groups.setdefault(group, [])[: shared // block_tokens] if group else []
        own = list(range(fresh, fresh + blocks - len(ids)))
        fresh += len(own)
        if group:
            groups[group] += own[: shared // block_tokens - len(ids)]
        requests.ids.fromlist(ids + own)
        requests.add(number, seconds, tokens, blocks)


def _whole(path: Path, line: int, name: str, value: Any) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
        if type(number) is int and 0 < number <= _TOKENS_MAX:
            return number
    except ValueError:
        pass
    message = f"{name}={_short(value)}: a whole number from 1 to {_TOKENS_MAX}"
    raise TraceError(str(path), line, message)


def _seconds(path: Path, line: int, name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str) else value
        if isinstance(number, int | float) and -1e15 < number < 1e15:
            return float(number)
    except ValueError:
        pass
    raise TraceError(str(path), line, f"{name}={_short(value)}: a number is allowed")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
