"""vLLM's MultiConnector with a kvshelf connector among its children.

Two things stand in vLLM's way of that, in 0.26 to 0.33: what happens to a failed load is read from
the outermost configuration, which a child cannot see; and children of one class (several
OffloadingConnectors, as kvshelf's and vLLM's CPU offloading) get the metrics of the first one's
spec only, so that the first value of another ends the process that counts.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.v1.kv_offload.base import OffloadingSpec
from vllm.v1.kv_offload.factory import OffloadingSpecFactory

from kvshelf.vllm import compat
from kvshelf.vllm.adopt import (
    CONNECTOR_NAME,
    SPEC_NAME,
    asks_for_kvshelf,
    recompute_failed_loads,
)
from kvshelf.vllm.connector import KvshelfConnector

logger = compat.logger_of(__name__)

_OFFLOADING = (CONNECTOR_NAME, "OffloadingConnector")
_CHILDREN = "connectors"
_MODULE_PATH = "kv_connector_module_path"
_SPECS_KEY = "kvshelf.specs"


class KvshelfMultiConnector(MultiConnector):
    """Source: vLLM's MultiConnector (kv_connector/v1/multi_connector.py), whose name it takes.

    Without a child of ours it is vLLM's, but for the metrics of several OffloadingConnectors.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        if any(map(_is_ours, _children(vllm_config))):
            recompute_failed_loads(vllm_config.kv_transfer_config)
        super().__init__(vllm_config, role, kv_cache_config)
        for child in self._connectors:
            if isinstance(child, KvshelfConnector) and child.weights is not None:
                child.weights.epochs.has_other_caches = True  # those of the children beside it

    @override
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if not num_external_tokens:
            return
        chosen = self._requests_to_connector.get(request.request_id, -1)
        if chosen >= 0 and _keeps_own_kv(self._connectors[chosen]):
            return
        for child in self._connectors:
            if isinstance(child, KvshelfConnector):
                child.other_loads(request)

    @override
    def update_connector_output(self, connector_output: Any) -> None:
        has_news = not connector_output.is_empty()
        for child in self._connectors:
            if isinstance(child, KvshelfConnector):
                child.has_news = has_news  # it is given its own part of the output only
        super().update_connector_output(connector_output)

    @classmethod
    @override
    def build_prom_metrics(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Called in the API server's process, which never makes a connector."""
        return super().build_prom_metrics(_with_all_metrics(vllm_config), *args, **kwargs)


class SpecsOfChildren(OffloadingSpec):
    """The metrics of several specs, for the one class that all of them have. Never made."""

    @classmethod
    @override
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        return {
            name: definition
            for extra in extra_config[_SPECS_KEY]
            for name, definition in OffloadingSpecFactory.get_spec_cls(extra)
            .build_metric_definitions(extra)
            .items()
        }

    @classmethod
    def config_info_keys(cls, extra_config: dict[str, Any]) -> tuple[str, ...]:
        """Label names of vLLM's information series (0.33)."""
        keys: dict[str, None] = {}
        for extra in extra_config[_SPECS_KEY]:
            keys |= dict.fromkeys(
                compat.info_keys(OffloadingSpecFactory.get_spec_cls(extra), extra)
            )
        return tuple(keys)


def _keeps_own_kv(connector: Any) -> bool:
    """Whether what a child loads was computed by this engine, or loaded by kvshelf.

    vLLM's offloading to host memory is one. Others may load what an engine with other weights has
    computed, and kvshelf would store that under this engine's identity.
    """
    if isinstance(connector, KvshelfConnector):
        return connector.keeps_own_kv
    return type(connector).__name__ == "SimpleCPUOffloadConnector"


def _children(vllm_config: Any) -> list[dict[str, Any]]:
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    return list(extra.get(_CHILDREN) or ())


def _extra(child: dict[str, Any]) -> dict[str, Any]:
    return dict(child.get("kv_connector_extra_config") or {})


def _is_ours(child: dict[str, Any]) -> bool:
    return asks_for_kvshelf(child.get("kv_connector"), _extra(child))


def _with_spec(child: dict[str, Any]) -> dict[str, Any]:
    """A child's own settings, with the spec that it need not name."""
    return {**_extra(child), "spec_name": SPEC_NAME} if _is_ours(child) else _extra(child)


def _with_all_metrics(vllm_config: Any) -> Any:
    """A configuration whose first offloading child has the metrics of all of them."""
    children = _children(vllm_config)
    offloading = [i for i, each in enumerate(children) if each.get("kv_connector") in _OFFLOADING]
    if len(offloading) < 2:
        return vllm_config
    specs = [_with_spec(children[i]) for i in offloading]
    first = {k: v for k, v in children[offloading[0]].items() if k != _MODULE_PATH}
    children[offloading[0]] = {
        **first,
        # By its registered name, not from a module: all of them must be of one class, since vLLM
        # registers the series of each class, and those of two collide.
        "kv_connector": "OffloadingConnector",
        "kv_connector_extra_config": {
            "spec_name": SpecsOfChildren.__name__,
            "spec_module_path": __name__,
            _SPECS_KEY: specs,
        },
    }
    changed = copy.copy(vllm_config)
    transfer = vllm_config.kv_transfer_config
    changed.kv_transfer_config = replace(
        transfer,
        kv_connector_extra_config={**transfer.kv_connector_extra_config, _CHILDREN: children},
    )
    return changed
