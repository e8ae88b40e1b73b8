"""Counters of a vLLM server's /metrics page, summed over its labels but one."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.request

_TIMEOUT_SECONDS = 2.0
_BYTES_MAX = 16 << 20
_REASON_CHARS_MAX = 200


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
        for name, labels, number in _samples(line) if line.startswith("kvshelf:") else ():
            if name.endswith("_bucket"):
                continue
            result = labels.get("result")
            key = f"{name}/{result}" if result else name
            value = found.get(key, 0.0) + number
            if math.isfinite(value):  # JSON has no other numbers
                found[key] = value
    return found


def _samples(line: str) -> list[tuple[str, dict[str, str], float]]:
    """Name, labels and value of a line's sample; nothing if it has none."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - heavy

    try:
        families = list(text_string_to_metric_families(line))
        samples = [sample for family in families for sample in family.samples]
        return [(each.name, each.labels, float(each.value)) for each in samples]
    except (ValueError, IndexError, OverflowError):
        return []
