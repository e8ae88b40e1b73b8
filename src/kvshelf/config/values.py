"""One setting's value, from what a user wrote: text of an environment variable, or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvshelf.config.rootlist import SETTING, roots_text
from kvshelf.errors import ConfigError


def convert(name: str, value: Any, spec: Any, shown_as: str | None = None) -> Any:
    label, meta = shown_as or name, spec.metadata
    kind = str(spec.type)
    if kind == "bool":
        return parse_bool(label, value)
    if kind == "str":
        value = roots_text(value) if name == SETTING else value
        if not isinstance(value, str) or (meta["choices"] and value not in meta["choices"]):
            raise ConfigError(label, value, allowed_text(name, kind, meta))
        return value
    try:
        if isinstance(value, bool):
            raise ValueError
        if name.endswith("_mode"):
            number: float = _octal(value)
        elif kind == "int":
            number = int(str(value).strip())
        else:
            number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(label, value, allowed_text(name, kind, meta)) from None
    if not meta["low"] <= number <= meta["high"]:  # never true of NaN
        raise ConfigError(label, value, allowed_text(name, kind, meta))
    return number


def _octal(value: Any) -> int:
    """Permission bits, as chmod(1) reads them. Text only: of the JSON number 2770 nobody could say
    whether it means 0o2770, as its writer thinks, or 2770, as JSON does."""
    if not isinstance(value, str):
        raise TypeError
    return int(value.strip(), 8)


def parse_bool(name: str, value: Any) -> bool:
    """True or false, also as templates write them."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise ConfigError(name, value, "true or false")


def allowed_text(name: str, kind: str, meta: Mapping[str, Any]) -> str:
    if meta["choices"]:
        return f"one of {', '.join(meta['choices'])}"
    if kind == "str":
        return "a text"
    if name.endswith("_mode"):
        return f'octal digits as text, "{meta["low"]:04o}" to "{meta["high"]:04o}"'
    noun = "a whole number" if kind == "int" else "a number"
    return f"{noun} from {meta['low']:,} to {meta['high']:,}"
