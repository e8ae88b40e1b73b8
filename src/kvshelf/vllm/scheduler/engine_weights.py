"""The scheduler's side of weights: when to ask the workers what they have, and what follows.

    EngineCore, Scheduler (kvshelf.vllm.patches) -> EngineWeights -> workers -> Epochs, Adapters

Scheduler's thread only. Asking waits for the workers, as every RPC of vLLM does: some 0.1 s for
16 GB on a GPU; once at start, once after something that may have changed weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from kvshelf.faultlog import FaultLog
from kvshelf.vllm import compat
from kvshelf.vllm.adapters import Adapter, Adapters
from kvshelf.vllm.scheduler.epochs import Epochs
from kvshelf.vllm.worker.worker_weights import WeightsRead, give_up, read_adapters, read_weights

logger = compat.logger_of(__name__)

# While requests and weights come in turn, reading weights takes a tenth of the time at most.
_REST = 9.0


class EngineWeights:
    """
    Args:
        epochs: told what the workers have.
    """

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs
        self.adapters = Adapters()
        self._executor: Any = None
        self._alive: Callable[[], Iterable[str]] = tuple
        self._faults = FaultLog(logger)
        self._read_from = self._read_until = 0.0
        self._adapters_are_old = False

    def begin(self, executor: Any, alive: Callable[[], Iterable[str]]) -> None:
        """Read what the engine starts with; once, before its first request.

        Args:
            executor: vLLM's.
            alive: gives the requests that have computed nothing.
        """
        if self._executor is not None:
            return
        self._executor, self._alive = executor, alive
        read = self._read()
        self.epochs.begin(_digests(read))
        if read is not None:
            seconds = max(each.seconds for each in read)
            logger.info("kvshelf: weights in memory read in %.2f s", seconds)

    def before_rpc(self, what: str) -> None:
        """An RPC to the workers begins, which may change weights."""
        if self.epochs.has_computed_in_doubt:
            self.settle_if_possible()
        self.epochs.doubt(f"{what} may have changed weights")
        self._ask(give_up)

    def after_rpc(self, what: str) -> None:
        """It is over; reading weights waits until they are wanted."""
        self.epochs.doubt(f"{what} may have changed weights")

    def before_request(self, request: Any) -> None:
        """A request is about to be added."""
        if self._are_weights_asleep():
            return
        lora = request.lora_request
        if lora is not None and (lora.load_inplace or not self.adapters.knows(lora.lora_int_id)):
            self._load(lora)
        if lora is not None and self._adapters_are_old:
            self.read_adapters()

    def after_reset(self, *, succeeded: bool, with_connectors: bool) -> None:
        """vLLM reset its prefix cache, or tried to."""
        if succeeded:
            self.adapters.local_reset()
            self.epochs.local_reset(with_connectors=with_connectors, alive=self._alive())
        if self._are_weights_asleep():
            self.epochs.doubt("weights were not in memory")
        else:
            # Also if nothing is in doubt: whoever changes weights unseen must reset.
            self._settle()

    def settle_if_possible(self) -> None:
        """If the weights are in doubt, read them; a request is about to be scheduled."""
        if not self.epochs.is_in_doubt or self._are_weights_asleep():
            return
        took = self._read_until - self._read_from
        if self.epochs.is_empty or time.monotonic() - self._read_until >= _REST * took:
            self._settle()

    def _settle(self) -> None:
        """Read the weights; what follows is told in the log."""
        before, why = self.epochs.generation, self.epochs.reason
        read = self._read()
        if read is not None and any(each.are_asleep for each in read):
            self.epochs.doubt("weights were not in memory")
            return
        digests = _digests(read)
        self.epochs.settle(digests, self._alive())
        if self.epochs.generation == before:
            return
        logger.info(
            "kvshelf: weights changed (%s): epoch %s%s. %s",
            why,
            self.epochs.name,
            "" if digests is not None else ", which no other engine shares",
            "Loads and stores go on."
            if self.epochs.is_on
            else "Nothing is loaded or stored until vLLM's prefix cache is reset.",
        )

    def saw_changes(self, *, of_weights: bool, of_adapters: bool) -> None:
        """What a worker says of its own accord."""
        if of_weights and not self.epochs.is_in_doubt:
            logger.warning(
                "kvshelf: weights changed while nobody said so. Nothing is loaded or stored until "
                "vLLM's prefix cache is reset, as after every update of weights."
            )
            self.epochs.doubt("a worker saw other weights")
        self._adapters_are_old |= of_adapters

    def adapter_of(self, request: Any) -> Adapter | None:
        """See ``Adapters.of_request``."""
        lora = request.lora_request
        return self.adapters.of_request(lora.lora_int_id, lora.lora_name, lora.lora_path)

    def read_adapters(self) -> None:
        """Ask the workers which adapters they have."""
        loaded = self._ask(read_adapters)
        self._adapters_are_old = loaded is None
        self.adapters.loaded(loaded or [])

    def _load(self, lora: Any) -> None:
        """Have the workers load an adapter now, which they would do in the request's first step."""
        try:
            self._executor.add_lora(lora)
        except Exception as error:  # vLLM meets it again, and says so to the client
            self._faults.fault("adapter", f"{lora.lora_name} cannot be loaded: {error}")
        self.read_adapters()

    def _are_weights_asleep(self) -> bool:
        """Whether the weights' memory is unmapped: to read it would end the worker."""
        return "weights" in getattr(self._executor, "sleeping_tags", ())

    def _read(self) -> list[WeightsRead] | None:
        self._read_from = time.monotonic()
        read: list[WeightsRead] | None = self._ask(read_weights)
        self._read_until = time.monotonic()
        if read is None:
            return None
        for each in read:
            if each.fault:
                self._faults.fault("weights cannot be read", each.fault)
        self._adapters_are_old = False
        self.adapters.loaded([each.adapters for each in read])
        return read

    def _ask(self, function: Callable[[Any], Any]) -> Any:
        """The answers of all ranks, in order; None if the workers cannot be asked."""
        if self._executor is None:
            return None
        try:
            return self._executor.collective_rpc(function)
        except Exception as error:  # whatever it is, it must not end vLLM's scheduler
            self._faults.fault("workers cannot be asked", f"{type(error).__name__}: {error}")
            return None


def _digests(read: list[WeightsRead] | None) -> list[str] | None:
    if read is None or not all(each.digest for each in read):
        return None
    return [each.digest for each in read]
