"""The conformance suite and what files promise, on the native engine; cf. test_memory.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from kvshelf.engine import Engine
from kvshelf.engine.native import NativeEngine
from tests.harness.file_engine import FileEngineTests


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
