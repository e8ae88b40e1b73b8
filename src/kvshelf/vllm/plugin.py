"""The ``vllm.general_plugins`` entry point: our names, in each of vLLM's processes."""

from __future__ import annotations


def register() -> None:
    """Register our connector, spec and tier by name. May run more than once.

    Of vLLM's classes only ModelConfig changes (``kvshelf.vllm.patches`` says why).

    The name ``OffloadingConnector`` is given to KvshelfConnector too: with any other spec it is
    vLLM's own connector, with ours it turns failed loads into recomputation, which vLLM's cannot.
    So is ``MultiConnector`` to a subclass (``kvshelf.vllm.multi``).
    Classes are loaded only when a configuration asks for them.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import (  # noqa: PLC0415 - see above
        KVConnectorFactory,
    )
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory  # noqa: PLC0415
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory  # noqa: PLC0415

    from kvshelf.vllm import patches  # noqa: PLC0415

    patches.keep_overrides()
    connectors = KVConnectorFactory._registry
    for registry, add, name, module in (
        (connectors, KVConnectorFactory.register_connector, "KvshelfConnector", "connector"),
        (connectors, KVConnectorFactory.register_connector, "KvshelfMultiConnector", "multi"),
        (SecondaryTierFactory._registry, SecondaryTierFactory.register_tier, "KvshelfTier", "tier"),
        (
            OffloadingSpecFactory._registry,
            OffloadingSpecFactory.register_spec,
            "SharedStorageOffloadingSpec",
            "spec",
        ),
    ):
        if name not in registry:  # plugins load more than once in a process
            add(name, f"kvshelf.vllm.{module}", name)
    connectors["OffloadingConnector"] = connectors["KvshelfConnector"]
    connectors["MultiConnector"] = connectors["KvshelfMultiConnector"]
