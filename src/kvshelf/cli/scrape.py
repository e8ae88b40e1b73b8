"""Counters of a vLLM server's /metrics page, summed over its labels but one. Standard library."""

from __future__ import annotations

import http.client
import math
import re
import time
import urllib.error
import urllib.request

_TIMEOUT_SECONDS = 2.0
_BYTES_MAX = 16 << 20
_REASON_CHARS_MAX = 200
# One sample of the text format (prometheus.io/docs/instrumenting/exposition_formats).
_SAMPLE = re.compile(r"(kvshelf:\w+)(?:\{(.*)\})? ([^ ]+)(?: -?\d+)?")
_RESULT = re.compile(r'result="(\w+)"')


class ScrapeError(Exception):
    """The page cannot be had; says why."""


def scrape(url: str) -> dict[str, float]:
    """kvshelf's counters by name, all engines and ranks together; those with a ``result`` label by
    ``name/result``.

    Raises:
        ScrapeError: no answer within 2 s, or not that of a metrics page with series of kvshelf.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            text = _read(answer).decode("utf-8", "replace")
            rest = answer.length  # None where the server did not say
    except urllib.error.URLError as error:
        raise ScrapeError(_short(error.reason)) from error
    except (OSError, ValueError) as error:
        raise ScrapeError(_short(error)) from error
    except http.client.HTTPException as error:  # an answer that is no HTTP, or an impossible URL
        raise ScrapeError(f"{type(error).__name__}: {_short(error)}") from error
    if rest:
        raise ScrapeError(f"the page ends {rest} bytes too soon")
    found = parse(text)
    if not found:
        raise ScrapeError("the page has no series of kvshelf")
    return found


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The page; the timeout of a socket is for one call each, so one that drips has no end."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    parts: list[bytes] = []
    size = 0
    while size < _BYTES_MAX and (part := answer.read1(_BYTES_MAX - size)):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError(f"the page is not whole after {_TIMEOUT_SECONDS:g} s")
    return b"".join(parts)


def _short(reason: object) -> str:
    return str(reason)[:_REASON_CHARS_MAX] or type(reason).__name__


def parse(page: str) -> dict[str, float]:
    """The counters in a page; lines that are none are left out, and so are a histogram's buckets:
    each counts what those below it have counted."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is None:
            continue
        name, labels, text = match.groups()
        if name.endswith("_bucket"):
            continue
        result = _RESULT.search(labels or "")
        if result:
            name = f"{name}/{result[1]}"
        try:
            value = found.get(name, 0.0) + float(text)
        except ValueError:
            continue
        if math.isfinite(value):  # JSON has no other numbers
            found[name] = value
    return found
