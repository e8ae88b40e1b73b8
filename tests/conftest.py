"""Fixtures shared by all tests: the tiny model, made once a session, and the demo's harness."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parent.parent / "demo"
if str(DEMO) not in sys.path:  # engines, damage, tiny_model: the tests ask what the demo asks
    sys.path.insert(0, str(DEMO))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need vLLM skip where it is not installed: the core is tested without it."""
    if importlib.util.find_spec("vllm") is not None:
        return
    skip = pytest.mark.skip(reason="vLLM is not installed: make setup")
    for item in items:
        if item.get_closest_marker("vllm") or item.get_closest_marker("e2e"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a Llama of 4 layers and a byte tokenizer; see demo/tiny_model.py."""
    from tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same name and shape with other weights: nothing may be shared with it."""
    from tiny_model import DEFAULT_SEED, make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("other") / "tiny-llama", DEFAULT_SEED + 1)
