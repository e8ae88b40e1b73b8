"""Decodes the few objects that kubectl and helm send as protobuf: Namespace and Secret.

``k8s\\0``, then a message with type and content (k8s.io/apimachinery, runtime.Unknown); the numbers
are those of k8s.io/api's generated.proto.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

MAGIC = b"k8s\0"
NAME, NAMESPACE, LABELS, ANNOTATIONS, VERSION = 1, 3, 11, 12, 6


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: bytes, or a number."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind}")


def _entry(data: bytes) -> tuple[str, bytes]:
    entry = dict(fields(data))
    return entry.get(1, b"").decode(), entry.get(2, b"")


def _metadata(data: bytes) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for number, value in fields(data):
        if number in (NAME, NAMESPACE, VERSION) and value:
            key = {NAME: "name", NAMESPACE: "namespace", VERSION: "resourceVersion"}[number]
            made[key] = value.decode()
        elif number in (LABELS, ANNOTATIONS):
            key, text = _entry(value)
            made.setdefault("labels" if number == LABELS else "annotations", {})[key] = (
                text.decode()
            )
    return made


def decode(body: bytes) -> dict[str, Any]:
    """The object as JSON would have it.

    Raises:
        ValueError: a kind that is not expected.
    """
    envelope = dict(fields(body.removeprefix(MAGIC)))
    types = dict(fields(envelope[1]))
    made: dict[str, Any] = {"apiVersion": types[1].decode(), "kind": types[2].decode()}
    if made["kind"] not in ("Namespace", "Secret"):
        raise ValueError(f"no decoder for {made['kind']}")
    for number, value in fields(envelope[2]):
        if number == 1:
            made["metadata"] = _metadata(value)
        elif made["kind"] == "Secret" and number == 2:
            key, content = _entry(value)
            made.setdefault("data", {})[key] = base64.b64encode(content).decode()
        elif made["kind"] == "Secret" and number == 3:
            made["type"] = value.decode()
    return made
