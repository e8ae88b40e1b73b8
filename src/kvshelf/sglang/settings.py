"""kvshelf's settings, read from ``--hicache-storage-backend-extra-config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvshelf.config import VLLM_KEYS, Settings
from kvshelf.errors import ConfigError

# SGLang's own keys in the same mapping.
_SGLANG_KEYS = frozenset({"backend_name", "module_path", "class_name", "interface_v1"})
_PAGES = "pages_per_chunk"
_PAGES_MAX = 128  # SGLang hands over so many in one call
# Settings that do nothing here would mislead; what to use instead.
_INSTEAD = {
    "admission": "of vLLM only: SGLang's --hicache-storage-prefetch-policy decides",
    "min_hit_tokens": "of vLLM only: use SGLang's prefetch_threshold",
    "hit_ttl_seconds": "of vLLM only: every lookup asks the storage",
    "miss_ttl_seconds": "of vLLM only: every lookup asks the storage",
    "failed_ttl_seconds": "of vLLM only: a damaged chunk is removed",
    "presence_keys_max": "of vLLM only: no presence is remembered",
    "allow_weak_hash": "of vLLM only: SGLang's page hashes are SHA-256",
    "audit_percent": "of vLLM only",
    "audit_failures_max": "of vLLM only",
    "audit_memory_mib": "of vLLM only",
    "audit_tolerance": "of vLLM only",
    **dict.fromkeys(VLLM_KEYS, "of vLLM only"),
}


def read_settings(extra_config: Mapping[str, Any] | None) -> Settings:
    """The settings of one backend.

    Raises:
        ConfigError: one is unknown, malformed or of vLLM only, or SGLang would not use the
            interface that reads and writes host memory in place.
    """
    given = dict(extra_config or {})
    if given.get("interface_v1") not in (1, True):
        raise ConfigError(
            "interface_v1",
            given.get("interface_v1"),
            "must be 1: kvshelf reads and writes SGLang's host memory in place",
        )
    for name in _INSTEAD.keys() & given.keys():
        raise ConfigError(name, given[name], _INSTEAD[name])
    return Settings.from_mapping(
        {k: v for k, v in given.items() if k not in _SGLANG_KEYS and k != _PAGES}
    )


def pages_per_chunk(extra_config: Mapping[str, Any] | None) -> int:
    """How many pages one chunk file has at most; 1 if it is not given.

    Raises:
        ConfigError: it is no number from 1 to 128.
    """
    value = (extra_config or {}).get(_PAGES, 1)
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= _PAGES_MAX:
        raise ConfigError(_PAGES, value, f"a whole number from 1 to {_PAGES_MAX}")
    return number
