"""Skips what needs SGLang where it is not installed."""

from __future__ import annotations

import importlib.util

import pytest

from tests.harness.sglang_engines import why_no_sglang

_MISSING = why_no_sglang() or (
    None if importlib.util.find_spec("sglang") else "SGLang is not on PYTHONPATH: make test-sglang"
)
_WITHOUT = {"test_groups.py"}  # needs no SGLang


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _MISSING:
        for item in items:
            if "tests/sglang/" in item.path.as_posix() and item.path.name not in _WITHOUT:
                item.add_marker(pytest.mark.skip(reason=_MISSING))
