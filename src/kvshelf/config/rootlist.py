"""The roots of a shelf, as a user writes them: one absolute path, or a JSON list of several."""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

from kvshelf.errors import ConfigError

SETTING = "shared_storage_path"
ROOTS_MAX = 16
_ALLOWED = "required: an absolute path, or a JSON list of such"


def roots_text(value: Any) -> Any:
    """A list as the text that ``parse_roots`` takes; anything else as it is."""
    return json.dumps(value) if isinstance(value, list) else value


def parse_roots(text: str) -> tuple[str, ...]:
    """The roots in the order given; a text that begins with "[" is a list.

    Raises:
        ConfigError: none, too many, one is no absolute path, one is or lies in another.
    """
    if not text.startswith("["):
        return (_absolute(text, text),)
    try:
        paths = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(SETTING, text, _ALLOWED) from None
    if not 1 <= len(paths) <= ROOTS_MAX:
        raise ConfigError(SETTING, text, f"a list of 1 to {ROOTS_MAX} paths")
    roots = tuple(_absolute(path, text) for path in paths)
    folders = sorted(f"{os.path.normpath(root).strip('/')}/".lstrip("/") for root in roots)
    for outer, inner in itertools.pairwise(folders):
        if inner.startswith(outer):
            raise ConfigError(SETTING, text, "paths of which none is or lies in another")
    return roots


def _absolute(path: Any, text: str) -> str:
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise ConfigError(SETTING, text, _ALLOWED)
    return path
