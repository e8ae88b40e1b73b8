"""JSON values for whatever stands in vLLM's configuration, the same in every process."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

# In the text of an object without one of its own: another number in every process.
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


def plain(value: Any, of_dataclass: Callable[[Any], dict[str, Any]] | None = None) -> Any:
    """Make a JSON value of a configuration's value.

    Types and functions become their names, objects that vLLM can hash their hash. Others become
    their text, or the name of their type if the text differs from process to process.

    Args:
        of_dataclass: reads a dataclass; by default all of its fields.
    """
    if isinstance(value, Mapping):
        return {_text(key): plain(item, of_dataclass) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, of_dataclass) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_text(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if of_dataclass is not None:
            return of_dataclass(value)
        names = [each.name for each in dataclasses.fields(value)]
        return {name: plain(getattr(value, name, None)) for name in names}
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # no JSON for infinities and NaN
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    if callable(getattr(value, "compute_hash", None)):  # vLLM's SupportsHash
        return str(value.compute_hash())
    text = str(value)
    if _ADDRESS.search(text):
        return f"{type(value).__module__}.{type(value).__qualname__}"
    return text
