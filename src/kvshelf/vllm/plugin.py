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

    from kvshelf.vllm import compat, patches  # noqa: PLC0415

    patches.keep_overrides()
    module, name = "kvshelf.vllm.connector", "KvshelfConnector"
    compat.register_once(
        KVConnectorFactory, KVConnectorFactory.register_connector, name, module, name
    )
    KVConnectorFactory._registry["OffloadingConnector"] = KVConnectorFactory._registry[name]
    multi = "KvshelfMultiConnector"
    compat.register_once(
        KVConnectorFactory,
        KVConnectorFactory.register_connector,
        multi,
        "kvshelf.vllm.multi",
        multi,
    )
    KVConnectorFactory._registry["MultiConnector"] = KVConnectorFactory._registry[multi]
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory  # noqa: PLC0415

    tier = "KvshelfTier"
    compat.register_once(
        SecondaryTierFactory, SecondaryTierFactory.register_tier, tier, "kvshelf.vllm.tier", tier
    )
    spec = "SharedStorageOffloadingSpec"
    compat.register_once(
        OffloadingSpecFactory,
        OffloadingSpecFactory.register_spec,
        spec,
        "kvshelf.vllm.spec",
        spec,
    )
