"""Namespaces: everything that decides a chunk's bytes, as a digest and as readable fields.

Pure functions: no I/O, no threads. The folder that a namespace gets is described in docs/layout.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DIGEST_BYTES = 32
SHORT_DIGEST_CHARS = 12
MODEL_CHARS_MAX = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9._]")


@dataclass(frozen=True)
class Identity:
    """The identity fields of a namespace; equal digests mean interchangeable chunks.

    Attributes:
        fields: JSON values by name; must contain "model", a string.

    Raises:
        ValueError: "model" is missing or no string, or a value is not JSON.
    """

    fields: Mapping[str, Any]
    _canonical: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.fields.get("model"), str):
            raise ValueError("an identity needs the field 'model', a string")
        try:
            text = json.dumps(
                dict(self.fields),
                sort_keys=True,
                separators=(",", ":"),
                ensure_ascii=False,
                allow_nan=False,
            )
        except TypeError as error:
            raise ValueError(f"an identity field is not JSON: {error}") from error
        object.__setattr__(self, "_canonical", text)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of the fields, 32 bytes."""
        return hashlib.sha256(self._canonical.encode("utf-8", "surrogatepass")).digest()

    @property
    def digest12(self) -> str:
        return self.digest.hex()[:SHORT_DIGEST_CHARS]

    @property
    def folder(self) -> str:
        """Name of the namespace's folder: no path separator, never "." or "..", under 80 bytes."""
        model = _UNSAFE.sub("_", str(self.fields["model"])).lstrip(".")[:MODEL_CHARS_MAX]
        return f"{model or 'model'}-{self.digest12}"

    def to_json(self) -> dict[str, Any]:
        """The content of namespace.json."""
        return {"kvshelf": 1, "digest": self.digest.hex(), "identity": json.loads(self._canonical)}

    @classmethod
    def from_json(cls, value: Any) -> Identity:
        """The identity in a namespace.json.

        Raises:
            ValueError: it is not one, or its digest is not that of its fields.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("identity"), Mapping):
            raise ValueError("not a namespace.json: no identity in it")
        identity = cls(dict(value["identity"]))
        if value.get("digest") != identity.digest.hex():
            raise ValueError("the digest in namespace.json is not that of its fields")
        return identity


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """One field that differs; None stands for a field that one side lacks."""

    field: str
    left: Any
    right: Any


def diff(left: Identity, right: Identity) -> list[FieldDifference]:
    """The fields that differ, nested ones by dotted path, in alphabetical order."""
    a, b = _flatten("", left.to_json()["identity"]), _flatten("", right.to_json()["identity"])
    return [
        FieldDifference(name, a.get(name), b.get(name))
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name) or (name in a) != (name in b)
    ]


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(str(index), item) for index, item in enumerate(value)]
    if not items:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in items:
        flat.update(_flatten(f"{prefix}.{name}" if prefix else name, item))
    return flat
