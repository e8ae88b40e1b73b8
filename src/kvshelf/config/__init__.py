"""The settings of kvshelf: each one's default, unit, range and help, in one place.

Read from vLLM's ``kv_connector_extra_config`` (a mapping); an environment variable
``KVSHELF_<NAME>`` replaces a default, never a value that was given. docs/reference/settings.md
is made from the fields below.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kvshelf.config.foreign import is_foreign
from kvshelf.config.rootlist import parse_roots
from kvshelf.config.values import convert
from kvshelf.errors import ConfigError

ENV_PREFIX = "KVSHELF_"
# Beside our settings in the same mapping; vLLM reads them, we only let them pass.
VLLM_KEYS = frozenset(
    {
        "spec_name",
        "spec_module_path",
        "block_size",
        "blocks_per_chunk",
        "offload_prompt_only",
        "self_describing_kv_events",
        "canonical_layout",
        "sync_load_budget_bytes",
    }
)
INTERNAL_PREFIX = "kvshelf."
# They decide who shares with whom, or what a worker prepares; and a worker's environment may be
# another than the scheduler's.
_SAME_EVERYWHERE = frozenset({"audit_percent", "auth_key_file", "identity_salt"})
_DAY_SECONDS = 86_400


def default_threads(most: int = 12) -> int:
    """12 threads reached the bus's speed on a 16-core host; fewer cores get fewer."""
    return max(4, min(most, os.cpu_count() or 4))


def _setting(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    shown: str | None = None,
) -> Any:
    """A dataclass field with what the parser and the documentation need."""
    metadata = {
        "help": help_text,
        "low": low,
        "high": high,
        "choices": choices,
        "shown": shown or (str(default).lower() if isinstance(default, bool) else str(default)),
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _seconds(default: float, help_text: str, *, low: float = 0.01) -> Any:
    """A duration of a day at most."""
    return _setting(default, help_text, low=low, high=_DAY_SECONDS)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user may set. The first five have the names and the meaning of the llm-d FS backend.

    The constructor does not check: users' values come through ``from_mapping``.
    """

    shared_storage_path: str = _setting(
        "",
        "Absolute path of the shelf's root, the same on every node, or a list of 2 to 16 roots.",
        shown="(required)",
    )
    threads_per_gpu: int = _setting(
        default_threads,
        "I/O threads of a worker.",
        low=1,
        high=256,
        shown="12, or the number of cores if that is less, but at least 4",
    )
    max_staging_memory_gb: float = _setting(
        0.25, "GB (10^9 bytes) of staging memory for stores on their way.", low=0.01, high=1024
    )
    read_preferring_ratio: float = _setting(
        0.75,
        "How far loads are preferred to stores: a third of this share of the I/O threads (rounded, "
        "at least 1 unless it is 0) never takes stores; the others take waiting loads first.",
        low=0,
        high=1,
    )
    max_write_queued_seconds: float = _seconds(
        30.0,
        "Seconds that a store may wait for staging memory before it is dropped; 0: no limit.",
        low=0,
    )
    piece_mib: int = _setting(
        4, "MiB that one checksum covers, and that are copied as a unit.", low=1, high=64
    )
    lookup_threads: int = _setting(32, "Threads for lookups and touches.", low=1, high=256)
    open_timeout_seconds: float = _seconds(
        120.0, "Seconds within which all roots must answer at start; else it ends with an error."
    )
    load_timeout_seconds: float = _seconds(
        30.0, "Seconds after which a load fails and its blocks are recomputed."
    )
    load_stall_seconds: float = _seconds(
        5.0, "Seconds without a byte after which a load fails, and its blocks are recomputed."
    )
    store_timeout_seconds: float = _seconds(
        120.0, "Seconds after which a store whose bytes were taken is given up."
    )
    lookup_timeout_seconds: float = _seconds(5.0, "Seconds after which a lookup counts as a miss.")
    lookup_wait_seconds: float = _seconds(
        0.5,
        "Seconds that a request waits for its lookup; then it is computed, and the answer serves "
        "the next one.",
        low=0.001,
    )
    breaker_faults: int = _setting(
        5,
        "Storage is left alone when so many of the last 2 n - 1 lookups and loads (or stores) "
        "failed or came too late.",
        low=1,
        high=1000,
    )
    breaker_retry_seconds: float = _setting(
        2.0, "Seconds after which storage that was left alone is tried again.", low=0.05, high=3600
    )
    admission: str = _setting(
        "auto",
        "Which hits are loaded: auto (where that is faster than to compute them), or always.",
        choices=("auto", "always"),
    )
    min_hit_tokens: int = _setting(
        0, "Tokens: shorter hits are computed, not loaded.", low=0, high=100_000_000
    )
    hit_ttl_seconds: float = _seconds(
        30.0, "Seconds that a chunk once found is believed to be there.", low=0
    )
    miss_ttl_seconds: float = _seconds(
        1.0, "Seconds that an absent chunk is believed to be absent.", low=0
    )
    failed_ttl_seconds: float = _seconds(
        60.0,
        "Seconds that a chunk which failed to load is not tried again, unless stored anew.",
        low=1,
    )
    presence_keys_max: int = _setting(
        131_072,
        "Keys whose presence a scheduler remembers, about 360 bytes each.",
        low=1024,
        high=100_000_000,
    )
    touch_interval_seconds: float = _setting(
        600.0,
        "Seconds between two renewals of a chunk's time of use.",
        low=0,
        high=365 * _DAY_SECONDS,
    )
    evict: bool = _setting(
        True,
        "Whether this engine keeps the shelf within its limits when no other does.",
    )
    evict_lease_seconds: float = _setting(
        15.0,
        "Seconds after which another engine evicts if the one that did is gone.",
        low=1,
        high=3600,
    )
    evict_shelf_gb: float = _setting(
        0.0, "GB (10^9 bytes) that all chunks may take; 0: no limit.", low=0, high=1e9
    )
    evict_percent: float = _setting(
        90.0,
        "Percent of the file system's bytes and inodes that may be in use, by anybody.",
        low=1,
        high=100,
    )
    evict_low_percent: float = _setting(
        95.0,
        "Percent of a limit down to which chunks are evicted once it is exceeded.",
        low=1,
        high=100,
    )
    audit_percent: float = _setting(
        0.0,
        "Percent of requests with a hit that compute it instead of loading it, to compare what "
        "they computed with the shelf; 0: none.",
        low=0,
        high=100,
    )
    audit_failures_max: int = _setting(
        3,
        "Chunk files that audits find to differ, after which kvshelf is off in this engine.",
        low=1,
        high=1_000_000_000,
    )
    audit_memory_mib: int = _setting(
        256,
        "MiB of host memory of a worker for audits; chunks that find no room are not audited.",
        low=1,
        high=1 << 20,
    )
    audit_tolerance: float = _setting(
        0.0,
        "Largest relative difference of 16 values that an audit takes for rounding; 0: by the "
        "type of the values.",
        low=0,
        high=10,
    )
    close_timeout_seconds: float = _setting(
        10.0, "Seconds that shutdown lets pending stores finish.", low=0, high=3600
    )
    direct: str = _setting(
        "off",
        "O_DIRECT for payloads: off, on, or auto (where the mount takes it).",
        choices=("off", "auto", "on"),
    )
    compress: str = _setting(
        "auto",
        "Whether stores pack bf16 KV to three quarters, without loss: on, off, or auto, which is "
        "off so far. All engines load both. Update all engines of a shelf before on.",
        choices=("auto", "on", "off"),
    )
    durability: str = _setting(
        "none",
        "What is synced before a chunk is published: none, its data, or full (folders too).",
        choices=("none", "data", "full"),
    )
    verify: bool = _setting(True, "Whether loads verify checksums; false is for measurement only.")
    file_mode: int = _setting(
        0o640,
        "Permission bits of files, before the umask; the root's mode may give its group more.",
        low=0o400,
        high=0o777,
        shown='"0640"',
    )
    dir_mode: int = _setting(
        0o2770,
        "Permission bits of folders, likewise; the 2 makes them inherit the root's group.",
        low=0o700,
        high=0o7777,
        shown='"2770"',
    )
    auth_key_file: str = _setting(
        "",
        "File of a secret (32 bytes or more): chunks carry tags made with it, others are misses.",
        shown='""',
    )
    identity_salt: str = _setting(
        "",
        "Engines share only if this is equal: for tenants, or adapters of equal names.",
        shown='""',
    )
    allow_weak_hash: bool = _setting(
        False,
        "Whether xxhash may name blocks without a secret PYTHONHASHSEED. Clients can then make "
        "prompts whose blocks get the names of another client's.",
    )
    weights_cache_dir: str = _setting(
        "",
        "Folder of this user (mode 0700) that keeps the digests of weight files, or off: then "
        "every start reads all weights.",
        shown="$XDG_CACHE_HOME/kvshelf",
    )
    weights_wait_seconds: float = _seconds(
        120.0,
        "Seconds that a process waits while another one of its node hashes the same weights; then "
        "it hashes them itself.",
        low=0,
    )

    @classmethod
    def from_mapping(
        cls, given: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> Settings:
        """Check and convert what a user wrote; numbers may be strings.

        Args:
            given: settings by name, together with those that vLLM reads itself.
            environment: where KVSHELF_ variables are looked up, the process's own by default.
                Empty ones count as not set. Unknown ones are let pass: Kubernetes makes
                KVSHELF_PORT and its like for a Service of the name kvshelf.

        Raises:
            ConfigError: the first setting that is unknown, malformed or contradicts another.
        """
        environment = os.environ if environment is None else environment
        known = {f.name: f for f in fields(cls)}
        for name in given:
            if name in known or name in VLLM_KEYS or name.startswith(INTERNAL_PREFIX):
                continue
            if not is_foreign(name, given[name]):
                raise _unknown(name, given[name], sorted([*known, *VLLM_KEYS]))
        values: dict[str, Any] = {}
        for name, spec in known.items():
            variable = ENV_PREFIX + name.upper()
            if name in given:
                values[name] = convert(name, given[name], spec)
            elif environment.get(variable) and name in _SAME_EVERYWHERE:
                raise ConfigError(
                    variable, environment[variable], f"give {name} in the configuration"
                )
            elif environment.get(variable):
                values[name] = convert(name, environment[variable], spec, shown_as=variable)
        settings = cls(**values)
        settings._check(given, chosen=values.keys())
        return settings

    def _check(self, given: Mapping[str, Any], chosen: Collection[str]) -> None:
        roots = self.roots
        if "block_size" in given and "blocks_per_chunk" in given:
            raise ConfigError(
                "blocks_per_chunk", given["blocks_per_chunk"], "not together with block_size"
            )
        if self.lookup_timeout_seconds > self.load_timeout_seconds:
            raise ConfigError(
                "lookup_timeout_seconds",
                self.lookup_timeout_seconds,
                f"at most load_timeout_seconds ({self.load_timeout_seconds})",
            )
        for name in ("load_stall_seconds", "lookup_wait_seconds"):
            limit_name = name.split("_")[0] + "_timeout_seconds"
            value, limit = getattr(self, name), getattr(self, limit_name)
            if value > limit and name in chosen:  # a default simply never comes into play
                raise ConfigError(name, value, f"at most {limit_name} ({limit})")
        if self.weights_cache_dir not in ("", "off") and self.weights_cache_dir[0] != "/":
            raise ConfigError(
                "weights_cache_dir", self.weights_cache_dir, "an absolute path, or off"
            )
        if self.max_staging_memory_gb * 1e9 < len(roots) * self.piece_mib << 20:
            raise ConfigError(
                "max_staging_memory_gb",
                self.max_staging_memory_gb,
                f"room for one piece a root at least (piece_mib={self.piece_mib})",
            )

    @property
    def roots(self) -> tuple[str, ...]:
        """The paths in ``shared_storage_path``."""
        return parse_roots(self.shared_storage_path)

    @property
    def load_only_threads(self) -> int:
        """Threads that never take stores, by read_preferring_ratio: 12 threads at 0.75 keep 3."""
        if self.read_preferring_ratio == 0:
            return 0
        share = max(1, round(self.threads_per_gpu * self.read_preferring_ratio / 3))
        return min(self.threads_per_gpu - 1, share)


def _unknown(name: str, value: Any, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return ConfigError(name, value, f"unknown setting; {hint}known are {', '.join(known)}")
