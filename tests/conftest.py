"""Fixtures shared by all tests: the tiny model, made once a session, and a mount with faults."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import slow
from tests.harness.faulty_mount import FaultyMount


def pytest_addoption(parser: pytest.Parser) -> None:
    slow.pytest_addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts what runs in the background with Ctrl-C ignored, and so would be the programs
    that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    slow.pytest_configure(config)


def is_slow(item: pytest.Item, usual_timeout_seconds: float) -> bool:
    """By another mark than ``slow`` itself: engines, stress, and what may take unusually long."""
    if any(item.iter_markers("e2e")) or any(item.iter_markers("stress")):
        return True
    timeout = item.get_closest_marker("timeout")
    return timeout is not None and timeout.args[0] > usual_timeout_seconds


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here, with a reason: the core is tested without vLLM."""
    has_vllm = importlib.util.find_spec("vllm") is not None
    no_vllm = pytest.mark.skip(reason="vLLM is not installed: make setup")
    no_stress = pytest.mark.skip(reason="long, opt-in: -m stress")
    for item in items:
        if not has_vllm and any(item.iter_markers("vllm")):
            item.add_marker(no_vllm)
        if not has_vllm and any(item.iter_markers("e2e")):
            item.add_marker(no_vllm)
        if "stress" not in config.option.markexpr and any(item.iter_markers("stress")):
            item.add_marker(no_stress)
        if is_slow(item, float(config.getini("timeout"))):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        longest_first(items)


def longest_first(items: list[pytest.Item]) -> None:
    """Files with engines, then those with slow tests: no core waits at the end for a long file.
    For xdist's --dist loadfile with --no-loadscope-reorder."""
    rank: dict[Path, int] = {}
    for item in items:
        own = 0 if any(item.iter_markers("e2e")) else 1 if any(item.iter_markers("slow")) else 2
        rank[item.path] = min(own, rank.get(item.path, own))
    items.sort(key=lambda item: rank[item.path])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a Llama of 4 layers and a byte tokenizer; see harness/tiny_model.py."""
    from tests.harness.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same name and shape with other weights: nothing may be shared with it."""
    from tests.harness.tiny_model import DEFAULT_SEED, make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("other") / "tiny-llama", DEFAULT_SEED + 1)


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyMount]:
    """A mount whose system calls fail on demand; for tests that are skipped where there is none."""
    made = FaultyMount(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()
