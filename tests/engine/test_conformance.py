"""The shipped conformance suite on the native engine; test_memory.py has it on the memory one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from kvshelf.engine import Engine
from kvshelf.engine.native import NativeEngine
from kvshelf.testing import FileEngineTests


class TestNativeEngine(FileEngineTests):
    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        return NativeEngine


class TestNativeEngineWithoutWriteBehind(FileEngineTests):
    config = dataclasses.replace(FileEngineTests.config, write_behind=False)

    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        return NativeEngine


class TestNativeEngineThatPacks(FileEngineTests):
    """What is no bf16 is stored as it is, and all else stays as it was."""

    config = dataclasses.replace(FileEngineTests.config, compress=True)

    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        return NativeEngine
