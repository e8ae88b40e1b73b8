"""Counters of a vLLM server's /metrics page, summed over its labels but one. Standard library."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

_TIMEOUT_SECONDS = 2.0
_BYTES_MAX = 16 << 20
# One sample of the text format (prometheus.io/docs/instrumenting/exposition_formats).
_SAMPLE = re.compile(r"(kvshelf:\w+)(?:\{(.*)\})? ([^ ]+)(?: -?\d+)?")
_RESULT = re.compile(r'result="(\w+)"')


class ScrapeError(Exception):
    """The page cannot be had; says why."""


def scrape(url: str) -> dict[str, float]:
    """kvshelf's counters by name, all engines and ranks together; those with a ``result`` label by
    ``name/result``.

    Raises:
        ScrapeError: no answer within 2 s, or not that of a metrics page.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            text = answer.read(_BYTES_MAX).decode("utf-8", "replace")
    except urllib.error.URLError as error:
        raise ScrapeError(str(error.reason)) from error
    except (OSError, ValueError) as error:
        raise ScrapeError(str(error)) from error
    return parse(text)


def parse(text: str) -> dict[str, float]:
    """The counters in a page; lines that are none are left out."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is None:
            continue
        name, labels, value = match.groups()
        result = _RESULT.search(labels or "")
        if result:
            name = f"{name}/{result[1]}"
        try:
            found[name] = found.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return found
