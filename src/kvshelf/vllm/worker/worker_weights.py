"""What one worker knows of the weights in its memory, and how the scheduler's process asks.

    executor.collective_rpc(read_weights)  -> WeightsRead of every rank, in order
    executor.collective_rpc(read_adapters) -> Loaded of every rank
    executor.collective_rpc(give_up)       -> loads under way are computed, stores are dropped

The functions run on the worker's main thread, between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvshelf.vllm import compat
from kvshelf.vllm.adapters import Adapter, Loaded
from kvshelf.vllm.worker.memory_weights import UnreadableWeightsError, Watch, digest_of, models_of

if TYPE_CHECKING:
    from kvshelf.vllm.worker.worker import KvshelfWorker

logger = compat.logger_of(__name__)

# How often the watch looks where nothing is stored; a store looks each time.
WATCH_SECONDS = 1.0
# Where a patched LoRA manager keeps the digests of what it loaded, and a worker what is unmapped.
DIGESTS_NAME = "_kvshelf_digests"
ASLEEP_NAME = "_kvshelf_asleep"


@dataclass(frozen=True, slots=True)
class WeightsRead:
    """
    Attributes:
        digest: of all weights of this rank; "" if they cannot be read.
        seconds: it took.
        fault: why they cannot be read.
        adapters: in this rank's memory.
        are_asleep: their memory is unmapped, so nothing was read.
    """

    digest: str
    seconds: float
    fault: str
    adapters: Loaded
    are_asleep: bool = False


class WorkerWeights:
    """One thread: the worker's main thread.

    Args:
        rank: of the worker.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._watch: Watch | None = None
        self._lora_manager: Any = None
        self._looked = 0.0
        self._has_changed = False

    def attach(self, watch: Watch | None, lora_manager: Any) -> None:
        """Watch the weights as they are now."""
        self._watch, self._lora_manager = watch, lora_manager
        self._has_changed = False

    def watch_no_more(self) -> None:
        """Let go of the weights, which may be replaced."""
        self._watch = None

    def is_due(self) -> bool:
        return self._watch is not None and time.monotonic() - self._looked >= WATCH_SECONDS

    def have_changed(self) -> bool:
        """Whether a watched value differs from what it was when the weights were last read, or did
        at any time since."""
        self._looked = time.monotonic()
        if self._watch is not None and self._watch.has_changed():
            self._has_changed = True
        return self._has_changed

    def has(self, adapter: Adapter | None) -> bool:
        """Whether this adapter is in memory, with the content that the scheduler knows of."""
        if adapter is None:
            return True
        return (
            loaded_adapters(self._lora_manager).get(adapter.adapter_id)
            == (adapter.digests[self._rank])
        )


def loaded_adapters(lora_manager: Any) -> Loaded:
    """Digests of the adapters that vLLM's LoRA manager of a worker has loaded."""
    return dict(getattr(lora_manager, DIGESTS_NAME, {}))


def read_weights(worker: Any) -> WeightsRead:
    """Read all weights, and watch them from now on. Runs in a worker; see ``digest_of``."""
    worker = getattr(worker, "worker", worker)  # vLLM wraps it
    if "weights" in getattr(worker, ASLEEP_NAME, ()):
        return WeightsRead("", 0.0, "", {}, are_asleep=True)
    start = time.monotonic()
    digest, fault, watch = "", "", None
    try:
        models = models_of(worker)
        watch = Watch(models)
        digest = digest_of(models)
    except UnreadableWeightsError as error:
        fault = str(error)
    except Exception as error:  # of many kinds; it must not end the worker
        fault = f"{type(error).__name__}: {error}"
    manager = getattr(worker.model_runner, "lora_manager", None)
    for side in _our_workers():
        side.weights.attach(watch, manager)
    return WeightsRead(digest, time.monotonic() - start, fault, loaded_adapters(manager))


def read_adapters(worker: Any) -> Loaded:
    """The adapters in memory. Runs in a worker."""
    worker = getattr(worker, "worker", worker)
    return loaded_adapters(getattr(worker.model_runner, "lora_manager", None))


def give_up(worker: Any) -> None:
    """See ``KvshelfWorker.give_up``. Runs in a worker."""
    del worker
    for side in _our_workers():
        side.give_up()


def quiesce() -> None:
    """See ``KvshelfWorker.quiesce``, for every connector of ours in this process."""
    for side in _our_workers():
        side.quiesce()


def _our_workers() -> Iterator[KvshelfWorker]:
    """Our workers in this process: the connector's, or those of a MultiConnector's children."""
    for connector in compat.worker_connectors():
        side = getattr(connector, "kvshelf_worker", None)
        if side is not None:
            yield side
