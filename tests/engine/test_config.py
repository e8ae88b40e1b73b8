"""Each field of an engine's configuration, and its default, is the same in Python and in C++."""

from __future__ import annotations

import dataclasses
import os
import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from kvshelf import ConfigError, Settings, _native
from kvshelf.engine import EngineConfig

HEADER = Path(__file__).parents[2] / "native" / "include" / "kvshelf" / "config.h"
FIELDS = {each.name: each for each in dataclasses.fields(EngineConfig)}
# What the core is told beside its EngineConfig, and what is the shelf's business alone.
ELSEWHERE = {"auth_key", "copy_method", "open_timeout_seconds"}
NATIVE_ONLY = {"ring_bytes"}


def test_the_core_reads_every_field_and_no_other() -> None:
    assert set(_native.config_defaults()) == FIELDS.keys() - ELSEWHERE


def test_the_core_has_no_field_that_it_does_not_read() -> None:
    struct = HEADER.read_text().split("struct EngineConfig {")[1].split("\n};")[0]
    there = set(re.findall(r"^  [\w:]+ (\w+)(?: = [^;]+)?;", struct, re.MULTILINE))
    assert there == set(_native.config_defaults()) | NATIVE_ONLY


def test_defaults_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    config = EngineConfig()

    def as_number(value: Any) -> Any:
        return list(type(value)).index(value) if isinstance(value, Enum) else value

    found = {name: as_number(getattr(config, name)) for name in _native.config_defaults()}
    assert found == _native.config_defaults()


def test_a_default_is_the_settings_or_the_fields_own() -> None:
    assert EngineConfig() == EngineConfig.from_settings(Settings())
    for name, each in FIELDS.items():
        has_own = each.default is not dataclasses.MISSING
        assert has_own != ("setting" in each.metadata), name


def test_the_settings_of_an_engine_reach_it() -> None:
    """Each changes the field that it is for, and no other."""
    changes: dict[str, Any] = {
        "threads_per_gpu": 1,
        "read_preferring_ratio": 0.0,
        "direct": "on",
        "compress": "on",
        "durability": "full",
        "verify": False,
    }
    reached: set[str] = set()
    default = EngineConfig()
    for setting in dataclasses.fields(Settings):
        old = getattr(Settings(), setting.name)
        new = changes.get(setting.name, old + 1 if isinstance(old, int | float) else old)
        config = EngineConfig.from_settings(dataclasses.replace(Settings(), **{setting.name: new}))
        reached |= {name for name in FIELDS if getattr(config, name) != getattr(default, name)}
    assert reached == {name for name, each in FIELDS.items() if each.metadata} - {"auth_key"}


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"a secret of more than thirty-two bytes")
    config = EngineConfig.from_settings(Settings(auth_key_file=str(file)))
    assert config.auth_key == file.read_bytes() and "secret" not in repr(config)
    with pytest.raises(ConfigError, match="auth_key_file"):
        EngineConfig.from_settings(Settings(auth_key_file=str(tmp_path / "absent")))


@pytest.mark.parametrize("change", [{"io_threads": 2**31}, {"verify": "yes"}, {"file_mode": -1}])
def test_a_field_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    from kvshelf.engine.native import NativeEngine

    config = dataclasses.replace(EngineConfig(), **change)
    with pytest.raises(ValueError, match=next(iter(change))):
        NativeEngine(tmp_path, [], config, namespace=bytes(32), rank=0)
