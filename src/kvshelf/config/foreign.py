"""Settings of other backends that users paste, and what kvshelf has instead.

Names of the llm-d FS backend, and of vLLM's host memory and ``fs`` tiers. A setting that would
silently do nothing is refused, in words that say what to use.
"""

from __future__ import annotations

from typing import Any

from kvshelf.errors import ConfigError

# Settings of the llm-d FS backend for what kvshelf does not have. Their neutral values may stay in
# a configuration that moves here; with any other, a user expects what would not happen.
LLMD_NEUTRAL = {"backend": "POSIX", "gds_mode": "disabled"}
# Likewise, but with something to use instead.
_OFF = {"enable_events": "false", "metadata_cache_max_entries": "0"}

_EVENTS = "use vLLM's --kv-events-config, and in a tier enable_kv_events too"
_NO_OBJECTS = (
    "kvshelf stores files, backend OBJ is not supported; leave it out, and give a mounted file "
    "system as shared_storage_path"
)
_HOST_TIER = (
    "belongs to vLLM's host memory: leave it out, or use spec_name TieringOffloadingSpec with a "
    "tier of the type KvshelfTier"
)
_SECRETS = frozenset({"access_key", "secret_key", "session_token"})
_INSTEAD = {
    "backend": _NO_OBJECTS,
    "enable_events": _EVENTS,
    "storage_events_endpoint": _EVENTS,
    "storage_events_hwm": _EVENTS,
    "storage_medium": _EVENTS + ": its medium is always STORAGE",
    "metadata_cache_max_entries": "use presence_keys_max",
    "metadata_cache_ttl_secs": "use hit_ttl_seconds and miss_ttl_seconds",
    "use_odirect": "use direct, which is off, auto or on",
    "use_o_direct": "use direct, which is off, auto or on",
    **dict.fromkeys(
        (
            "bucket",
            "scheme",
            "endpoint_override",
            "region",
            "ca_bundle",
            "access_key",
            "secret_key",
            "session_token",
        ),
        _NO_OBJECTS,
    ),
    "root_dir": "use shared_storage_path; root_dir is a tier's name of it",
    "n_read_threads": "use threads_per_gpu; n_read_threads is a tier's",
    "n_write_threads": "use threads_per_gpu; n_write_threads is a tier's",
    "enable_kv_events": "use vLLM's --kv-events-config; enable_kv_events is a tier's",
    "locality": "leave it out: it is a tier's",
    "backpressure": (
        "vLLM reads it since 0.31, of tiers only: leave it out; max_write_queued_seconds limits "
        "how long stores wait"
    ),
    **dict.fromkeys(
        (
            "secondary_tiers",
            "cpu_bytes_to_use",
            "num_cpu_blocks",
            "eviction_policy",
            "cache_policy_module_path",
            "store_threshold",
            "max_tracker_size",
            "tier_poll_interval_s",
        ),
        _HOST_TIER,
    ),
}


def is_foreign(name: str, value: Any) -> bool:
    """Whether the setting is another backend's and has the value that means nothing here.

    Raises:
        ConfigError: it is another backend's, with a value that kvshelf cannot give a meaning.
    """
    text = str(value).strip().lower()
    neutral = LLMD_NEUTRAL.get(name, _OFF.get(name))
    if neutral is not None and text == neutral.lower():
        return True
    if name in _INSTEAD:
        allowed = _INSTEAD[name]
    elif neutral is not None:
        allowed = "kvshelf has no such choice"
    else:
        return False
    if name not in _INSTEAD:
        allowed += f": leave it out, or {neutral}"
    raise ConfigError(name, "..." if name in _SECRETS else value, allowed)
