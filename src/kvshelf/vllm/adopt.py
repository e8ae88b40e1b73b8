"""Whether a connector's configuration asks for kvshelf, and what a user need not write in it."""

from __future__ import annotations

from typing import Any

from kvshelf.errors import ConfigError
from kvshelf.vllm import compat
from kvshelf.vllm.chunking import default_chunk

logger = compat.logger_of(__name__)

SPEC_NAME = "SharedStorageOffloadingSpec"
SPEC_MODULE = "kvshelf.vllm.spec"
CONNECTOR_NAME = "KvshelfConnector"
TIER_NAME = "KvshelfTier"
# Role -> whether such an engine loads, and whether it stores.
ROLES = {"kv_both": (True, True), "kv_consumer": (True, False), "kv_producer": (False, True)}


def adopt_config(transfer_config: Any) -> bool:
    """Fill in what a user need not write; True if the configuration asks for kvshelf.

    Raises:
        ConfigError: KvshelfConnector together with somebody else's spec.
    """
    extra = transfer_config.kv_connector_extra_config
    name, by_connector = extra.get("spec_name"), transfer_config.kv_connector == CONNECTOR_NAME
    if by_connector and name not in (None, SPEC_NAME):
        raise ConfigError("spec_name", name, f"with {CONNECTOR_NAME} leave it out or {SPEC_NAME}")
    if not asks_for_kvshelf(transfer_config.kv_connector, extra):
        return False
    extra.setdefault("spec_name", SPEC_NAME)
    extra.setdefault("spec_module_path", SPEC_MODULE)
    # vLLM itself needs a size: without one, a chunk would be a single block and files tiny.
    default_chunk(extra)
    if extra.get("sync_load_budget_bytes"):
        logger.warning(
            "kvshelf: sync_load_budget_bytes=%s becomes 0: vLLM computes a step on blocks whose "
            "load failed within the step. Loads wait between steps instead.",
            extra["sync_load_budget_bytes"],
        )
        extra["sync_load_budget_bytes"] = 0
    recompute_failed_loads(transfer_config)
    return True


def check_role(transfer_config: Any) -> None:
    """
    Raises:
        ConfigError: a role that says neither whether to load nor whether to store.
    """
    if transfer_config.kv_role not in ROLES:
        raise ConfigError("kv_role", transfer_config.kv_role, f"one of {', '.join(ROLES)}")


def asks_for_kvshelf(connector: str | None, extra: dict[str, Any]) -> bool:
    """Whether a connector's configuration means ours: by the connector's name or the spec's."""
    by_spec = extra.get("spec_name") == SPEC_NAME
    is_elsewhere = extra.get("spec_module_path") not in (None, SPEC_MODULE)
    return connector == CONNECTOR_NAME or (by_spec and not is_elsewhere)


def recompute_failed_loads(transfer_config: Any) -> None:
    """Make vLLM recompute what could not be loaded, whatever the configuration says."""
    if transfer_config.kv_load_failure_policy != "recompute":
        logger.info(
            "kvshelf: kv_load_failure_policy=%s becomes recompute: a chunk that fails to load is "
            "a miss, never a failed request",
            transfer_config.kv_load_failure_policy,
        )
        transfer_config.kv_load_failure_policy = "recompute"


def has_tier(extra: dict[str, Any]) -> bool:
    """Whether one of vLLM's secondary tiers is ours."""
    tiers = extra.get("secondary_tiers") or ()
    return any(isinstance(tier, dict) and tier.get("type") == TIER_NAME for tier in tiers)
