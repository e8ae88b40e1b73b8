"""The shipped conformance suite on our own engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from kvshelf.engine import Engine, MemoryEngine
from kvshelf.engine.native import NativeEngine
from kvshelf.testing import EngineTests, FileEngineTests


class TestMemoryEngine(EngineTests):
    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        return MemoryEngine


class TestNativeEngine(FileEngineTests):
    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        return NativeEngine


class TestNativeEngineWithoutWriteBehind(FileEngineTests):
    config = dataclasses.replace(FileEngineTests.config, write_behind=False)

    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        return NativeEngine
