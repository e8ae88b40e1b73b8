"""Namespaces: digests, folder names that cannot escape, differences."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshelf.disk.layout import chunk_path
from kvshelf.disk.namespace import ABSENT, FieldDifference, Identity, diff

HOSTILE = {
    "slashes": "org/model/../../../etc",
    "parent": "..",
    "dot": ".",
    "leading dots": "...hidden",
    "spaces": "my model  name",
    "long": "x" * 300,
    "unicode": "模型-é-😀",
    "nul": "a\0b",
    "newline": "a\nb",
    "lone surrogate": "a\udcffb",
    "surrogate pair": "a\ud83d\ude00b",
    "empty": "",
    "absolute": "/etc/passwd",
    "backslash": "..\\..\\x",
    "only unsafe": "////",
}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.text(), JSON, max_size=4).map(lambda d: {**d, "model": "m"})


def through_a_file(identity: Identity) -> Identity:
    return Identity.from_json(json.loads(json.dumps(identity.to_json(), indent=1)))


@pytest.mark.parametrize("model", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_model_name_cannot_escape(model: str) -> None:
    identity = Identity({"model": model})
    folder = identity.folder
    assert folder.isascii() and folder.isprintable() and "/" not in folder and "\\" not in folder
    assert not folder.startswith((".", "-")) and " " not in folder
    assert len(folder) < 80
    assert folder.endswith(f"-{identity.digest.hex()[:12]}")
    assert chunk_path(folder, 0, bytes(36)).count("/") == 3
    assert through_a_file(identity).digest == identity.digest


@given(st.text())
def test_any_model_name_makes_a_safe_folder(model: str) -> None:
    folder = Identity({"model": model}).folder
    assert set(folder) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert not folder.startswith((".", "-")) and len(folder) < 80


def test_models_of_equal_shortened_names_have_folders_of_their_own() -> None:
    names = ["a/b", "a_b", "a b", "x" * 64 + "1", "x" * 64 + "2", ".a", "a"]
    assert len({Identity({"model": name}).folder for name in names}) == len(names)


def test_the_digest_is_the_documented_one() -> None:
    # sha256sum of the canonical JSON of docs/layout.md
    assert Identity({"model": "é", "a": [1, None]}).digest.hex() == (
        hashlib.sha256('{"a":[1,null],"model":"é"}'.encode()).hexdigest()
    )


def test_the_digest_does_not_depend_on_the_order_of_fields() -> None:
    left = Identity({"model": "m", "a": {"x": 1, "y": 2}})
    right = Identity({"a": {"y": 2, "x": 1}, "model": "m"})
    assert left.digest == right.digest and left.folder == right.folder


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"dtype": "float16"},
        {"dtype": None},
        {"groups": [{"page_bytes": 4097}]},
        {"groups": [{"page_bytes": 4096}, {}]},
        {"groups": []},
        {"salt": "x"},
        {"flag": 1},
        {"number": 1.0},
        {"more": None},
    ],
    ids=str,
)
def test_each_field_changes_the_digest(change: dict[str, Any]) -> None:
    fields = {
        "model": "m",
        "dtype": "bfloat16",
        "groups": [{"page_bytes": 4096}],
        "salt": "",
        "flag": True,
        "number": 1,
    }
    before, after = Identity(fields), Identity({**fields, **change})
    assert before.digest != after.digest and before.folder != after.folder
    assert diff(before, after)


@pytest.mark.parametrize("key", sorted({"model", "dtype", "salt"}))
def test_a_missing_field_changes_the_digest(key: str) -> None:
    fields = {"model": "m", "dtype": "bfloat16", "salt": ""}
    without = {name: value for name, value in fields.items() if name != key}
    if key == "model":
        with pytest.raises(ValueError, match="model"):
            Identity(without)
    else:
        assert Identity(without).digest != Identity(fields).digest


@given(FIELDS)
def test_an_identity_survives_its_file(fields: dict[str, Any]) -> None:
    identity = Identity(fields)
    back = through_a_file(identity)
    assert back.digest == identity.digest and back.folder == identity.folder
    assert diff(back, identity) == []


@given(FIELDS, FIELDS)
def test_there_is_a_difference_exactly_if_the_digests_differ(
    a: dict[str, Any], b: dict[str, Any]
) -> None:
    left, right = Identity(a), Identity(b)
    assert bool(diff(left, right)) == (left.digest != right.digest)


def test_keys_that_are_numbers_survive_the_file() -> None:
    identity = Identity({"model": "m", "labels": {1: "a", 2: "b", 10: "c"}})
    assert through_a_file(identity).digest == identity.digest


def test_differences_name_the_innermost_field() -> None:
    left = Identity({"model": "m", "a": {"b": [1, 2]}, "gone": None, "kind": {"x": 1}})
    right = Identity({"model": "m", "a": {"b": [1, 3, 4]}, "new": {}, "kind": [1]})
    assert diff(left, right) == [
        FieldDifference("a.b.1", 2, 3),
        FieldDifference("a.b.2", ABSENT, 4),
        FieldDifference("gone", None, ABSENT),
        FieldDifference("kind", {"x": 1}, [1]),
        FieldDifference("new", ABSENT, {}),
    ]
    assert str(ABSENT) == "(absent)"


@pytest.mark.parametrize(
    ("left", "right"), [(1, 1.0), (1, True), (0, False), (None, "null"), ([], {}), ("", None)]
)
def test_values_that_python_confuses_are_told_apart(left: object, right: object) -> None:
    a, b = Identity({"model": "m", "x": left}), Identity({"model": "m", "x": right})
    assert a.digest != b.digest
    assert diff(a, b) == [FieldDifference("x", left, right)]


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(200_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": None},
        {"model": 1},
        pytest.param({"model": "m", "x": object()}, id="object"),  # its str is another each time
        {"model": "m", "x": b"bytes"},
        {"model": "m", "x": float("nan")},
        {"model": "m", "x": float("inf")},
        {"model": "m", "x": {1: "a", "1": "b"}},
    ],
    ids=str,
)
def test_what_is_no_identity_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Identity(fields)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        Identity({"model": "m", "x": deep()})


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "no identity"),
        ([], "no identity"),
        ({}, "no identity"),
        ({"kvshelf": 1, "identity": []}, "no identity"),
        ({"kvshelf": 1, "identity": {"model": "m"}}, "digest"),
        ({"kvshelf": 1, "identity": {"model": "m"}, "digest": "0" * 64}, "digest"),
        ({"kvshelf": 1, "identity": {}, "digest": "0" * 64}, "model"),
        ({**Identity({"model": "m"}).to_json(), "kvshelf": 2}, "version 2"),
    ],
    ids=str,
)
def test_a_damaged_namespace_file_is_refused(value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Identity.from_json(value)


def test_an_edited_field_is_noticed() -> None:
    value = Identity({"model": "m", "dtype": "bfloat16"}).to_json()
    value["identity"]["dtype"] = "float16"
    with pytest.raises(ValueError, match="digest"):
        Identity.from_json(value)
