"""What kvshelf hears from vLLM about weights, by the wrappers of ``kvshelf.vllm.patches``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from kvshelf.vllm import compat, patches
from kvshelf.vllm.adapters import Adapters
from kvshelf.vllm.scheduler.engine_weights import EngineWeights
from kvshelf.vllm.scheduler.epochs import Epochs
from kvshelf.vllm.worker.worker_weights import (
    WeightsRead,
    give_up,
    read_adapters,
    read_weights,
)


class Executor:
    """One worker's answers to our RPCs, in vLLM's place."""

    def __init__(self) -> None:
        self.weights = "w1"
        self.adapters: dict[int, str] = {}
        self.sleeping_tags: set[str] = set()
        self.asked: list[Any] = []
        self.fails = False

    def collective_rpc(self, function: Any) -> list[Any]:
        self.asked.append(function)
        if self.fails:
            raise RuntimeError("a worker is gone")
        if function is read_weights:
            return [WeightsRead(self.weights, 0.0, "", dict(self.adapters))]
        return [dict(self.adapters) if function is read_adapters else None]

    def add_lora(self, lora: Any) -> None:
        self.adapters[lora.lora_int_id] = lora.content


class Core:
    """An engine core in outline, with the methods that are wrapped."""

    def __init__(self, weights: EngineWeights) -> None:
        self.model_executor = Executor()
        self.scheduler = Scheduler(weights)

    def add_request(self, request: Any, wave: int = 0) -> tuple[Any, int]:
        return request, wave

    def collective_rpc(self, change: Any) -> Any:
        return change(self.model_executor)

    def wake_up(self) -> None:
        self.model_executor.sleeping_tags.clear()


class Scheduler:
    def __init__(self, weights: EngineWeights) -> None:
        self.connector = SimpleNamespace(weights=weights)
        self.requests: dict[str, Any] = {}
        self.succeeds: bool | Exception = True

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        if isinstance(self.succeeds, Exception):
            raise self.succeeds
        return self.succeeds


for _cls, _name, _wrapper in (
    (Core, "add_request", patches._add_request),
    (Core, "collective_rpc", lambda *args: patches._rpc("collective_rpc", *args)),
    (Core, "wake_up", lambda *args: patches._rpc("wake_up", *args)),
    (Scheduler, "reset_prefix_cache", patches._reset_prefix_cache),
):
    patches._wrap(_cls, _name, _wrapper)


@pytest.fixture
def core() -> Core:
    return Core(EngineWeights(Epochs()))


def weights_of(core: Core) -> EngineWeights:
    weights: EngineWeights = core.scheduler.connector.weights
    return weights


def request(**values: Any) -> Any:
    return SimpleNamespace(lora_request=None, **values)


def lora(content: str, **values: Any) -> Any:
    given = {"lora_int_id": 1, "lora_name": "x", "lora_path": "/x", "load_inplace": False}
    return SimpleNamespace(content=content, **{**given, **values})


def test_every_wrapped_method_is_there_and_is_wrapped_once() -> None:
    patches.watch_engine()
    patches.watch_worker()
    cores = compat.engine_core_classes()
    wrapped = [
        (cores[0], ("add_request", "collective_rpc", "wake_up", "add_lora")),
        (cores[1], ("run_busy_loop",)),
        (cores[2], ("run_busy_loop", "add_request")),
        (compat.scheduler_class(), ("reset_prefix_cache",)),
        (compat.lora_manager_class(), ("_load_adapter",)),
        (compat.worker_classes()[0], ("sleep", "wake_up")),
    ]
    before = [vars(cls)[name] for cls, names in wrapped for name in names]
    assert all(hasattr(each, patches._MARK) for each in before)
    patches.watch_engine()
    patches.watch_worker()
    assert [vars(cls)[name] for cls, names in wrapped for name in names] == before


def test_weights_are_read_before_the_first_request_and_not_again(core: Core) -> None:
    for wave in range(3):
        asked = request()
        assert core.add_request(asked, wave) == (asked, wave)
    assert core.model_executor.asked == [read_weights]
    assert weights_of(core).epochs.is_on


def test_an_rpc_is_a_doubt_before_and_after_and_read_when_wanted(core: Core) -> None:
    core.add_request(request())
    epochs = weights_of(core).epochs

    def change(executor: Executor) -> str:
        assert not epochs.is_on
        assert executor.asked[-1] is give_up  # workers let go before anything changes
        executor.weights = "w2"
        return "done"

    assert core.collective_rpc(change) == "done"
    assert not epochs.is_on
    weights_of(core).settle_if_possible()
    assert epochs.is_on and epochs.mask
    core.collective_rpc(lambda executor: setattr(executor, "weights", "w1"))
    weights_of(core).settle_if_possible()
    assert epochs.is_on and not epochs.mask


def test_an_rpc_that_fails_is_a_doubt_too(core: Core) -> None:
    with pytest.raises(ZeroDivisionError):
        core.collective_rpc(lambda _: 1 / 0)
    assert not weights_of(core).epochs.is_on


def test_a_reset_that_fails_lets_nothing_go_on(core: Core) -> None:
    core.add_request(request())
    weights = weights_of(core)
    weights.epochs.computes()
    core.collective_rpc(lambda executor: setattr(executor, "weights", "w2"))
    core.scheduler.succeeds = False
    assert core.scheduler.reset_prefix_cache() is False
    assert not weights.epochs.is_on
    core.scheduler.succeeds = RuntimeError("blocks are in use")
    with pytest.raises(RuntimeError, match="in use"):
        core.scheduler.reset_prefix_cache(True, True)
    assert not weights.epochs.is_on
    core.scheduler.succeeds = True
    assert core.scheduler.reset_prefix_cache() is True
    assert weights.epochs.is_on and weights.epochs.mask


def test_a_change_that_nobody_announced_is_found_at_the_reset(core: Core) -> None:
    core.add_request(request())
    core.model_executor.weights = "w2"
    core.scheduler.reset_prefix_cache()
    assert weights_of(core).epochs.mask


def test_weights_that_are_not_in_memory_are_not_read(core: Core) -> None:
    core.add_request(request())
    core.model_executor.sleeping_tags = {"weights", "kv_cache"}
    core.scheduler.reset_prefix_cache()
    core.add_request(request())
    weights_of(core).settle_if_possible()
    assert core.model_executor.asked == [read_weights]
    assert not weights_of(core).epochs.is_on
    core.wake_up()
    weights_of(core).settle_if_possible()
    assert weights_of(core).epochs.is_on and not weights_of(core).epochs.mask


class Worker:
    """A worker in outline; the memory of its weights comes and goes."""

    def __init__(self) -> None:
        self.model_runner = SimpleNamespace(get_model=lambda: 1 / 0)

    def sleep(self, level: int = 1) -> None:
        pass

    def discard(self, tags: tuple[str, ...]) -> None:
        pass

    def wake_up(self, tags: list[str] | None = None) -> None:
        pass


for _name, _wrapper in (
    ("sleep", patches._sleep),
    ("discard", patches._discard),
    ("wake_up", patches._wake_up),
):
    patches._wrap(Worker, _name, _wrapper)


def test_a_worker_that_was_told_alone_to_sleep_is_not_read(core: Core) -> None:
    """By an RPC, of which vLLM's executor keeps no note: to read unmapped memory would end it."""
    worker = Worker()
    worker.sleep()
    assert read_weights(worker).are_asleep
    worker.wake_up(["weights"])
    assert not read_weights(worker).are_asleep
    worker.discard(("kv_cache",))
    assert not read_weights(worker).are_asleep
    worker.sleep(level=2)
    worker.wake_up()
    assert "division" in read_weights(worker).fault  # it tries
    core.add_request(request())
    asleep = WeightsRead("", 0.0, "", {}, are_asleep=True)
    core.model_executor.collective_rpc = lambda _: [asleep]  # type: ignore[method-assign]
    core.scheduler.reset_prefix_cache()
    assert not weights_of(core).epochs.is_on


def test_workers_that_cannot_be_asked_make_an_epoch_that_nobody_shares(core: Core) -> None:
    core.add_request(request())
    core.model_executor.fails = True
    core.scheduler.reset_prefix_cache(False, True)
    epochs = weights_of(core).epochs
    assert epochs.is_on and epochs.mask
    first = epochs.mask
    core.scheduler.reset_prefix_cache(False, True)
    assert epochs.mask != first


def test_requests_that_have_computed_nothing_go_on_in_the_new_epoch(core: Core) -> None:
    core.add_request(request())
    epochs = weights_of(core).epochs
    for name, computed in (("waits", 0), ("runs", 32)):
        core.scheduler.requests[name] = SimpleNamespace(
            num_computed_tokens=computed, is_finished=lambda: False
        )
        epochs.started(name)
    epochs.computes()
    core.collective_rpc(lambda executor: setattr(executor, "weights", "w2"))
    core.scheduler.reset_prefix_cache()
    assert epochs.may_store("waits")
    assert not epochs.may_store("runs")


def test_an_adapter_is_loaded_to_be_known(core: Core) -> None:
    asked = request()
    asked.lora_request = lora("one")
    core.add_request(asked)
    adapter = weights_of(core).adapter_of(asked)
    assert adapter is not None and adapter.digests == ("one",)
    asked.lora_request = lora("two", load_inplace=True)
    core.add_request(asked)
    assert weights_of(core).adapter_of(asked) is None  # vLLM's cache may have the other's KV
    core.scheduler.reset_prefix_cache()
    other = weights_of(core).adapter_of(asked)
    assert other is not None and other.mask != adapter.mask


def test_adapters_of_ranks_are_told_apart_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvshelf.vllm import adapters as module

    adapters = Adapters()
    adapters.loaded([{1: "a", 2: "b"}, {1: "c"}])
    assert adapters.knows(1) and not adapters.knows(2)  # a rank lacks it
    adapter = adapters.of_request(1, "x", "/x")
    assert adapter is not None and adapter.digests == ("a", "c")
    monkeypatch.setattr(module, "NAMES_MAX", 1)
    assert adapters.of_request(1, "x", "/x") == adapter
    assert adapters.of_request(1, "y", "/y") is None


@pytest.mark.slow
def test_before_a_connector_is_made_nothing_changes_but_what_the_docs_name() -> None:
    """Importing every module and registering the plugin, in a process of its own."""
    env = {**os.environ, "VLLM_PLUGINS": ""}
    script = Path(__file__).with_name("side_effects.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    changed = done.stdout.partition("changed:\n")[2].split()
    assert changed == ["vllm.config.model.ModelConfig._apply_dict_overrides"]


def test_the_docs_name_everything_that_is_wrapped() -> None:
    patches.watch_engine()
    patches.watch_worker()
    patches.keep_overrides()
    cores, worker = compat.engine_core_classes(), compat.worker_classes()[0]
    classes = {
        "EngineCore": cores,
        "Scheduler": [compat.scheduler_class()],
        "WorkerLoRAManager": [compat.lora_manager_class()],
        "Worker": [worker],
        "ModelConfig": [compat.model_config_class()],
    }
    wrapped = {
        f"`{name}.{method}`"
        for name, each in classes.items()
        for cls in each
        for method, value in vars(cls).items()
        if hasattr(value, patches._MARK)
    }
    page = (Path(__file__).parents[2] / "docs/reference/changes-in-vllm.md").read_text()
    named = set(re.findall(r"`[A-Z]\w+\.\w+`", page))
    assert wrapped <= named and named - wrapped <= {"`Worker.discard`"}  # since 0.30
