"""Namespaces: everything that decides a chunk's bytes, as a digest and as readable fields.

Pure functions: no I/O, no threads. The folder that a namespace gets is described in docs/layout.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

FORMAT_VERSION = 1
SHORT_DIGEST_CHARS = 12
MODEL_CHARS_MAX = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9._]")


@dataclass(frozen=True)
class Identity:
    """The identity fields of a namespace; equal digests mean interchangeable chunks.

    Attributes:
        fields: JSON values by name; must contain "model", a string.

    Raises:
        ValueError: "model" is missing or no string, or a value is not JSON (or nested too deeply).
    """

    fields: Mapping[str, Any]
    _canonical: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.fields.get("model"), str):
            raise ValueError("an identity needs the field 'model', a string")
        try:
            # There and back first, so that an identity is the same before and after a file: keys
            # become strings, halves of a surrogate pair one character.
            ascii_text = json.dumps(dict(self.fields), allow_nan=False)
            value = json.loads(ascii_text, object_pairs_hook=_object)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"an identity field is not JSON: {error}") from error
        object.__setattr__(self, "_canonical", _canonical_json(value))

    def with_field(self, name: str, value: Any) -> Identity:
        """The same with one field more, or another value of it.

        Raises:
            ValueError: the value is not JSON.
        """
        return Identity({**self.fields, name: value})

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of the fields, 32 bytes."""
        return hashlib.sha256(self._canonical.encode("utf-8", "surrogatepass")).digest()

    @property
    def model(self) -> str:
        return str(self.fields["model"])

    @property
    def digest12(self) -> str:
        return self.digest.hex()[:SHORT_DIGEST_CHARS]

    @property
    def folder(self) -> str:
        """Name of the namespace's folder: no path separator, never "." or "..", under 80 bytes."""
        model = _UNSAFE.sub("_", self.model).lstrip(".")[:MODEL_CHARS_MAX]
        return f"{model or 'model'}-{self.digest12}"

    def to_json(self) -> dict[str, Any]:
        return {
            "kvshelf": FORMAT_VERSION,
            "digest": self.digest.hex(),
            "identity": json.loads(self._canonical),
        }

    @classmethod
    def from_json(cls, value: Any) -> Identity:
        """The identity in a namespace.json.

        Raises:
            ValueError: it is not one, of another version, or its digest is not that of its fields.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("identity"), Mapping):
            raise ValueError("not a namespace.json: no identity in it")
        version = value.get("kvshelf")
        if version != FORMAT_VERSION:
            raise ValueError(f"version {version!r}; this kvshelf knows {FORMAT_VERSION}")
        identity = cls(dict(value["identity"]))
        if value.get("digest") != identity.digest.hex():
            raise ValueError("the digest in namespace.json is not that of its fields")
        return identity


class Absent(Enum):
    """The side of a difference that lacks the field: not the same as a field that is null."""

    ABSENT = "(absent)"

    def __str__(self) -> str:
        return self.value


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """One field that differs: its JSON values, ``ABSENT`` for a side that lacks it."""

    field: str
    left: Any
    right: Any


def diff(left: Identity, right: Identity) -> list[FieldDifference]:
    """The fields that differ, nested ones by dotted path, in alphabetical order.

    Empty exactly if the digests are equal: values are compared as JSON, where 1, 1.0 and true are
    three different things.
    """
    found = _differences("", left.to_json()["identity"], right.to_json()["identity"])
    return sorted(found, key=lambda difference: difference.field)


def _differences(path: str, left: Any, right: Any) -> Iterator[FieldDifference]:
    a, b = _members(left), _members(right)
    if a is None or b is None or isinstance(left, dict) != isinstance(right, dict):
        if _canonical_json(left) != _canonical_json(right):
            yield FieldDifference(path, left, right)
        return
    for name in a.keys() | b.keys():
        inner = f"{path}.{name}" if path else name
        if name in a and name in b:
            yield from _differences(inner, a[name], b[name])
        else:
            yield FieldDifference(inner, a.get(name, ABSENT), b.get(name, ABSENT))


def _members(value: Any) -> dict[str, Any] | None:
    """What a dotted path can go into; an object or array without members is a value itself."""
    if isinstance(value, dict) and value:
        return value
    if isinstance(value, list) and value:
        return {str(index): item for index, item in enumerate(value)}
    return None


def _canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text; keys such as 1 and "1" would silently become one."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an identity has two fields of the same name")
    return value
