"""What kvshelf changes in vLLM, all of it. docs/reference/changes-in-vllm.md has the same list.

By a configuration that asks for kvshelf: its connector calls ``watch_engine`` or ``watch_worker``,
and ``fix_hash_seed``. Each once in a process, never by importing.

By registering the plugin, configured or not: ``keep_overrides``. vLLM makes its ModelConfig before
any process knows which connector it will make, and a forked worker registers no plugin of its own.

Every wrapper calls what it wraps with the same arguments (``_apply_dict_overrides``: with equal
ones) and returns or raises the same.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kvshelf.vllm import compat
from kvshelf.vllm.adapters import digest_of
from kvshelf.vllm.scheduler.engine_weights import EngineWeights
from kvshelf.vllm.worker.worker_weights import ASLEEP_NAME, DIGESTS_NAME, quiesce

_MARK = "_kvshelf_wraps"


def watch_engine() -> None:
    """Wrap the classes of the scheduler's process. May be called again."""
    core, scheduler = compat.engine_core_classes(), compat.scheduler_class()
    for cls in core:
        _wrap(cls, "run_busy_loop", _run_busy_loop)
        if "add_request" in vars(cls):
            _wrap(cls, "add_request", _add_request)
    for name in ("collective_rpc", "wake_up"):
        _wrap(core[0], name, functools.partial(_rpc, name))
    _wrap(core[0], "add_lora", _add_lora)
    _wrap(scheduler, "reset_prefix_cache", _reset_prefix_cache)


def watch_worker() -> None:
    """Wrap the classes of a worker's process. May be called again."""
    _wrap(compat.lora_manager_class(), "_load_adapter", _load_adapter)
    for cls in compat.worker_classes():
        _wrap(cls, "sleep", _sleep)
        _wrap(cls, "discard", _discard)
        _wrap(cls, "wake_up", _wake_up)


def fix_hash_seed(algorithm: str) -> None:
    """Make block hashes the same in every process.

    vLLM derives all block hashes from a root hash. Two engines with different roots share nothing,
    so where vLLM would draw one at random, PYTHONHASHSEED is set for this process; a value that the
    user set is left alone. Must run before ``init_none_hash``, which the engine calls after it made
    the connector (v1/engine/core.py), and after the identity is built, which refuses weak hashes.
    """
    if compat.draws_hash_seed(algorithm):
        os.environ.setdefault("PYTHONHASHSEED", compat.hash_seed(algorithm))


def keep_overrides() -> None:
    """Make vLLM's ModelConfig put copies of the user's dicts into a model's configuration.

    It puts the dicts themselves there, so a model that writes to its configuration changes the
    user's overrides too, and ``compat.untouched_hf_config`` would apply them. May be called again.
    """
    _wrap(compat.model_config_class(), "_apply_dict_overrides", _apply_copies)


def _wrap(cls: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """``wrapper`` is called with the wrapped function before its arguments."""
    wrapped = vars(cls).get(name)
    if wrapped is None or hasattr(wrapped, _MARK):
        return

    @functools.wraps(wrapped)
    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapper(wrapped, *args, **kwargs)

    setattr(call, _MARK, True)
    setattr(cls, name, call)


def _weights_of(scheduler: Any) -> Iterator[EngineWeights]:
    for connector in compat.flat_connectors(getattr(scheduler, "connector", None)):
        weights = getattr(connector, "weights", None)
        if isinstance(weights, EngineWeights):
            yield weights


def _alive(scheduler: Any) -> list[str]:
    """Requests that have no KV: nothing is computed, and no block is theirs."""
    return [
        req_id
        for req_id, request in scheduler.requests.items()
        if request.num_computed_tokens == 0 and not request.is_finished()
    ]


def _begin(weights: EngineWeights, core: Any) -> None:
    weights.begin(core.model_executor, functools.partial(_alive, core.scheduler))


def _run_busy_loop(wrapped: Callable[..., Any], core: Any, *args: Any, **kwargs: Any) -> Any:
    for weights in _weights_of(core.scheduler):
        _begin(weights, core)
    return wrapped(core, *args, **kwargs)


def _add_request(
    wrapped: Callable[..., Any], core: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    for weights in _weights_of(core.scheduler):
        _begin(weights, core)
        weights.before_request(request)
    return wrapped(core, request, *args, **kwargs)


def _rpc(name: str, wrapped: Callable[..., Any], core: Any, *args: Any, **kwargs: Any) -> Any:
    watching = list(_weights_of(core.scheduler))
    for weights in watching:
        _begin(weights, core)
        weights.before_rpc(name)
    try:
        return wrapped(core, *args, **kwargs)
    finally:
        for weights in watching:
            weights.after_rpc(name)


def _add_lora(wrapped: Callable[..., Any], core: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return wrapped(core, *args, **kwargs)
    finally:
        for weights in _weights_of(core.scheduler):
            _begin(weights, core)
            weights.read_adapters()


def _reset_prefix_cache(
    wrapped: Callable[..., Any],
    scheduler: Any,
    reset_running_requests: bool = False,
    reset_connector: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Any:
    succeeded = False
    try:
        succeeded = bool(
            wrapped(scheduler, reset_running_requests, reset_connector, *args, **kwargs)
        )
        return succeeded
    finally:
        for weights in _weights_of(scheduler):
            weights.after_reset(succeeded=succeeded, with_connectors=reset_connector)


def _apply_copies(wrapped: Callable[..., Any], model: Any, config: Any, overrides: Any) -> Any:
    return wrapped(model, config, copy.deepcopy(overrides))


def _load_adapter(wrapped: Callable[..., Any], manager: Any, *args: Any, **kwargs: Any) -> Any:
    adapter = wrapped(manager, *args, **kwargs)
    if not hasattr(manager, DIGESTS_NAME):
        setattr(manager, DIGESTS_NAME, {})
    getattr(manager, DIGESTS_NAME)[adapter.id] = digest_of(adapter)
    return adapter


def _sleep(wrapped: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    quiesce()
    _asleep(worker).update(("weights", "kv_cache"))
    return wrapped(worker, *args, **kwargs)


def _discard(wrapped: Callable[..., Any], worker: Any, tags: Iterable[str]) -> Any:
    quiesce()
    _asleep(worker).update(tags)
    return wrapped(worker, tags)


def _wake_up(wrapped: Callable[..., Any], worker: Any, tags: list[str] | None = None) -> Any:
    result = wrapped(worker, tags)
    _asleep(worker).difference_update(tags or ("weights", "kv_cache"))
    return result


def _asleep(worker: Any) -> set[str]:
    """What of a worker's memory is unmapped, also where an RPC told the worker alone to sleep."""
    if not hasattr(worker, ASLEEP_NAME):
        setattr(worker, ASLEEP_NAME, set())
    tags: set[str] = getattr(worker, ASLEEP_NAME)
    return tags
