"""Another connector beside ours: it "loads" prompts that a test has given it.

As a P/D connector or vLLM's CPU offloading does: blocks are allocated for a request, the request
waits, and its blocks are written between steps. ``held`` is what it has, in this process: a test
puts prompts there, and says from which weights their KV is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    SupportsHMA,
)

NEIGHBOR = {
    "kv_connector": "NeighborConnector",
    "kv_connector_module_path": "tests.vllm.neighbor",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {},
}


@dataclass
class Held:
    """What the neighbor loads: prompts, and how their slots are written to blocks."""

    prompts: list[list[int]] = field(default_factory=list)
    write: Callable[[list[int], list[int]], None] = lambda _blocks, _tokens: None


HELD = Held()


class Loads(KVConnectorMetadata):
    def __init__(self, loads: dict[str, tuple[list[int], list[int]]]) -> None:
        self.loads = loads


class NeighborConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._loads: dict[str, tuple[list[int], list[int]]] = {}
        self._done: set[str] = set()

    @override
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        tokens = list(request.all_token_ids)
        for prompt in HELD.prompts:
            if tokens[: len(prompt)] == prompt and num_computed_tokens < len(prompt):
                return len(prompt) - num_computed_tokens, True
        return 0, False

    @override
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            tokens = next(
                prompt
                for prompt in HELD.prompts
                if list(request.all_token_ids[: len(prompt)]) == prompt
            )
            self._loads[request.request_id] = (list(blocks.get_block_ids()[0]), tokens)

    @override
    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        loads, self._loads = self._loads, {}
        return Loads(loads)

    @override
    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        return False, None

    @override
    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        return False, None

    @override
    def register_kv_caches(self, kv_caches: Any) -> None:
        pass

    @override
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        assert isinstance(self._connector_metadata, Loads)
        for name, (blocks, tokens) in self._connector_metadata.loads.items():
            HELD.write(blocks, tokens)
            self._done.add(name)

    @override
    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    @override
    def save_kv_layer(self, *given: Any, **named: Any) -> None:
        pass

    @override
    def wait_for_save(self) -> None:
        pass

    @override
    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, set[str]]:
        done, self._done = self._done, set()
        return None, done
