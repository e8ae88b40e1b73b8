"""Several roots in one setting: how they are written, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvshelf.config import Settings
from kvshelf.config.rootlist import ROOTS_MAX
from kvshelf.errors import ConfigError


def given(paths: Any, **environment: str) -> Settings:
    mapping = {} if paths is None else {"shared_storage_path": paths}
    return Settings.from_mapping(mapping, environment)


def test_one_root_is_a_path() -> None:
    assert given("/mnt/kv/").roots == ("/mnt/kv/",)
    assert given(["/mnt/kv"]).roots == ("/mnt/kv",)


def test_several_are_a_list_or_its_text() -> None:
    roots = ["/mnt/b", "/mnt/a", "/mnt/a-b"]
    assert given(roots).roots == tuple(roots)
    assert given(json.dumps(roots)).roots == tuple(roots)
    assert given(None, KVSHELF_SHARED_STORAGE_PATH='["/x", "/y"]').roots == ("/x", "/y")


@pytest.mark.parametrize(
    "paths",
    [
        [],
        [f"/mnt/{i}" for i in range(ROOTS_MAX + 1)],
        ["/a", "b"],
        ["/a", ""],
        ["/a", None],
        ["/a", ["/b"]],
        ["/a", "/b\0"],
        ["/a", "/a"],
        ["/a", "/a/"],
        ["/a", "/b/../a"],
        ["/a", "//a"],
        ["/a/b", "/a"],
        ["/a", "/a-b", "/a/./b"],
        ["/", "/a"],
        '["/a", "/b"',
        '["/a"] ["/b"]',
        "[" * 100_000,
    ],
    ids=lambda paths: str(paths)[:24],
)
def test_what_cannot_be_is_refused(paths: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        given(paths)
    assert caught.value.setting == "shared_storage_path"


def test_staging_memory_has_room_for_a_piece_in_every_root() -> None:
    roots = [f"/mnt/{i}" for i in range(3)]
    mapping = {"shared_storage_path": roots, "piece_mib": 4}
    assert Settings.from_mapping({**mapping, "max_staging_memory_gb": 0.013}, {})
    with pytest.raises(ConfigError, match="a root"):
        Settings.from_mapping({**mapping, "max_staging_memory_gb": 0.012}, {})
