"""Settings: what users may write, and what they are told if they may not."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshelf.config import VLLM_KEYS, Settings
from kvshelf.config.foreign import LLMD_NEUTRAL
from kvshelf.engine import Direct, Durability, EngineConfig
from kvshelf.errors import ConfigError

PATH = {"shared_storage_path": "/mnt/kv"}
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
NUMBERS = [name for name, field in FIELDS.items() if field.type in ("int", "float")]
PLAIN_NUMBERS = [name for name in NUMBERS if not name.endswith("_mode")]
MODES = ["file_mode", "dir_mode"]


def settings(**given: Any) -> Settings:
    return Settings.from_mapping({**PATH, **given}, environment={})


def refusal(**given: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        settings(**given)
    return caught.value


def some_value(name: str) -> Any:
    """A value that is allowed and not the default."""
    field = FIELDS[name]
    if field.metadata["choices"]:
        return field.metadata["choices"][1]
    if field.type == "bool":
        return False
    if field.type == "str":
        return "/some/text"
    low, high = field.metadata["low"], field.metadata["high"]
    # Timeouts must not contradict each other when one alone is set.
    return {"load_timeout_seconds": 40.0, "lookup_timeout_seconds": 2.0}.get(
        name, min(high, low + 1)
    )


def test_the_defaults_are_in_their_ranges() -> None:
    defaults = settings()
    for name in NUMBERS:
        low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
        assert low <= getattr(defaults, name) <= high
    assert defaults == Settings.from_mapping(dataclasses.asdict(defaults) | _modes(), {})


def _modes() -> dict[str, str]:
    return {"file_mode": "0640", "dir_mode": "2770"}


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_can_be_set(name: str) -> None:
    value = some_value(name)
    written = f"{value:o}" if name in MODES else value
    assert getattr(settings(**{name: written}), name) == value


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_may_be_text(name: str) -> None:
    value = some_value(name)
    text = f" {value:o} " if name in MODES else str(value)
    found = getattr(settings(**{name: text}), name)
    assert found == value and type(found).__name__ == FIELDS[name].type


SAME_EVERYWHERE = ("audit_percent", "auth_key_file", "identity_salt")


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in SAME_EVERYWHERE])
def test_each_setting_has_a_variable(name: str) -> None:
    value = some_value(name)
    text = f"{value:o}" if name in MODES else str(value)
    variable = f"KVSHELF_{name.upper()}"
    given = {} if name == "shared_storage_path" else PATH
    assert getattr(Settings.from_mapping(given, {variable: text}), name) == value


@pytest.mark.parametrize("name", PLAIN_NUMBERS)
def test_each_limit_is_enforced(name: str) -> None:
    low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
    for value in (low - 1, high + 1, str(high + 1), 10**400, -(10**400), "9" * 5000):
        error = refusal(**{name: value})
        assert error.setting == name and f"from {low:,} to {high:,}" in error.allowed


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [None, "", " ", "x", True, False, [], {}, "nan", "inf", float("nan"), float("inf")],
    ids=repr,
)
def test_a_number_must_be_one(name: str, value: Any) -> None:
    assert refusal(**{name: value}).value is value


@pytest.mark.parametrize("value", [1.5, "1.5", "1e3", 4.0, "0x10"])
def test_a_whole_number_must_be_one(value: Any) -> None:
    assert "whole number" in refusal(threads_per_gpu=value).allowed


@pytest.mark.parametrize(
    ("text", "mode"), [("0640", 0o640), ("640", 0o640), ("0o640", 0o640), ("777", 0o777)]
)
def test_permission_bits_are_octal(text: str, mode: int) -> None:
    assert settings(file_mode=text).file_mode == mode


@pytest.mark.parametrize("value", [640, 416, 2770, "888", "-640", "0xff", "1777", "rw-r-----"])
def test_permission_bits_are_text_and_in_range(value: Any) -> None:
    error = refusal(file_mode=value)
    assert error.allowed == 'octal digits as text, "0400" to "0777"'
    assert refusal(dir_mode=2770).allowed.endswith('"0700" to "7777"')


@pytest.mark.parametrize("value", [True, "true", "TRUE", "1", 1, "yes", "on"])
def test_true(value: Any) -> None:
    assert settings(verify=value).verify is True


@pytest.mark.parametrize("value", [False, "false", "False", "0", 0, "no", "off"])
def test_false(value: Any) -> None:
    assert settings(verify=value).verify is False


@pytest.mark.parametrize("value", ["", "maybe", None, 2, []])
def test_neither_true_nor_false(value: Any) -> None:
    assert refusal(verify=value).allowed == "true or false"


@pytest.mark.parametrize("value", ["", "ON", "of", None, True, 1])
def test_a_choice_is_one_of_those_offered(value: Any) -> None:
    assert refusal(direct=value).allowed == "one of off, auto, on"


@pytest.mark.parametrize("value", [None, 1, b"x", ["x"]])
def test_a_text_must_be_one(value: Any) -> None:
    assert refusal(identity_salt=value).allowed == "a text"


@pytest.mark.parametrize("path", ["", "kv", "./kv", "~/kv", "/a\0b"])
def test_the_path_is_required_and_absolute(path: str) -> None:
    assert "absolute path" in refusal(shared_storage_path=path).allowed


def test_a_missing_path_is_required() -> None:
    with pytest.raises(ConfigError, match=r"shared_storage_path='': required"):
        Settings.from_mapping({}, {})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("shared_storage_pth", "shared_storage_path"),
        ("thread_per_gpu", "threads_per_gpu"),
        ("load_timeout", "load_timeout_seconds"),
        ("blocksize", "block_size"),
        ("THREADS_PER_GPU", None),
        ("zzz", None),
    ],
)
def test_an_unknown_setting_is_refused(name: str, meant: str | None) -> None:
    error = refusal(**{name: 1})
    assert error.setting == name and "unknown setting" in error.allowed
    assert (f"did you mean {meant}?" in error.allowed) if meant else "did you" not in error.allowed
    assert all(known in error.allowed for known in (*FIELDS, *VLLM_KEYS))


def test_contradictions_are_refused() -> None:
    assert refusal(block_size=256, blocks_per_chunk=16).setting == "blocks_per_chunk"
    assert refusal(lookup_timeout_seconds=31).setting == "lookup_timeout_seconds"
    assert refusal(load_timeout_seconds=1).setting == "lookup_timeout_seconds"
    assert refusal(load_stall_seconds=31).setting == "load_stall_seconds"
    assert refusal(lookup_wait_seconds=6).setting == "lookup_wait_seconds"
    short = {"load_timeout_seconds": 1, "lookup_timeout_seconds": 0.2}
    assert settings(**short).load_stall_seconds == 5.0  # the deadline comes first
    with pytest.raises(ConfigError, match="lookup_wait_seconds"):
        Settings.from_mapping({**PATH, **short}, {"KVSHELF_LOOKUP_WAIT_SECONDS": "0.3"})
    assert refusal(max_staging_memory_gb=0.01, piece_mib=16).setting == "max_staging_memory_gb"


def test_what_vllm_reads_passes() -> None:
    given: dict[str, Any] = dict.fromkeys(VLLM_KEYS - {"blocks_per_chunk"}, "x")
    assert settings(**given, **{"kvshelf.identity": object()}) == settings()


def test_variables_replace_defaults_and_never_what_was_given() -> None:
    environment = {"KVSHELF_LOOKUP_THREADS": "3", "KVSHELF_PIECE_MIB": "8"}
    found = Settings.from_mapping({**PATH, "piece_mib": 16}, environment)
    assert (found.lookup_threads, found.piece_mib) == (3, 16)


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"KVSHELF_LOOKUP_THREADS='x': a whole number"):
        Settings.from_mapping(PATH, {"KVSHELF_LOOKUP_THREADS": "x"})


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_who_shares_is_not_left_to_the_environment(name: str) -> None:
    variable = f"KVSHELF_{name.upper()}"
    with pytest.raises(ConfigError, match=rf"{variable}='x': give {name} in"):
        Settings.from_mapping(PATH, {variable: "x"})


def test_other_variables_do_not_matter() -> None:
    environment = {"KVSHELF_PORT": "tcp://10.0.0.1:80", "KVSHELF_PIECE_MIB": "", "PIECE_MIB": "2"}
    assert Settings.from_mapping(PATH, environment) == settings()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSHELF_SHARED_STORAGE_PATH", "/from/environment")
    assert Settings.from_mapping({}).shared_storage_path == "/from/environment"


# As its README and its examples for Kubernetes write it, numbers as text.
LLMD = {
    "spec_name": "SharedStorageOffloadingSpec",
    "spec_module_path": "kvshelf.vllm.spec",
    "shared_storage_path": "/mnt/files-storage/kv-cache/",
    "block_size": "256",
    "threads_per_gpu": "64",
    "max_staging_memory_gb": "150",
    "read_preferring_ratio": "0.75",
    "max_write_queued_seconds": "30.0",
    "gds_mode": "disabled",
    "backend": "POSIX",
}


def test_a_configuration_of_llmd_is_accepted() -> None:
    found = Settings.from_mapping(LLMD, {})
    assert found.threads_per_gpu == 64 and found.max_staging_memory_gb == 150
    assert found.read_preferring_ratio == 0.75 and found.max_write_queued_seconds == 30
    assert found.load_only_threads == 16


def test_what_kvshelf_cannot_do_for_llmd_is_refused() -> None:
    assert set(LLMD_NEUTRAL) <= set(LLMD)
    assert "leave it out, or disabled" in refusal(gds_mode="read_write").allowed
    assert "leave it out" in refusal(backend="OBJ").allowed


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("backend", "OBJ", "OBJ is not supported"),
        ("bucket", "kv", "OBJ is not supported"),
        ("endpoint_override", "10.0.0.1:9000", "shared_storage_path"),
        ("enable_events", "true", "--kv-events-config"),
        ("storage_events_endpoint", "tcp://*:5559", "--kv-events-config"),
        ("storage_medium", "SHARED_STORAGE", "--kv-events-config"),
        ("metadata_cache_max_entries", 100_000, "presence_keys_max"),
        ("metadata_cache_ttl_secs", 300, "hit_ttl_seconds"),
        ("use_odirect", True, "direct"),
        ("root_dir", "/mnt/kv", "shared_storage_path"),
        ("n_read_threads", 16, "threads_per_gpu"),
        ("enable_kv_events", True, "--kv-events-config"),
        ("locality", "REMOTE", "leave it out"),
        ("backpressure", {}, "max_write_queued_seconds"),
        ("cpu_bytes_to_use", 1 << 30, "TieringOffloadingSpec"),
        ("secondary_tiers", [{"type": "KvshelfTier"}], "TieringOffloadingSpec"),
        ("eviction_policy", "lru", "TieringOffloadingSpec"),
    ],
)
def test_a_setting_of_another_backend_is_refused_by_what_to_use(
    name: str, value: Any, instead: str
) -> None:
    error = refusal(**{name: value})
    assert error.setting == name and error.value == value and instead in error.allowed
    assert "unknown" not in error.allowed


@pytest.mark.parametrize(
    ("name", "value"),
    [("enable_events", False), ("enable_events", "False"), ("metadata_cache_max_entries", 0)],
)
def test_a_setting_of_another_backend_that_is_off_may_stay(name: str, value: Any) -> None:
    assert Settings.from_mapping({**PATH, name: value}, {}) == settings()


@pytest.mark.parametrize("name", ["access_key", "secret_key"])
def test_a_secret_is_not_repeated(name: str) -> None:
    error = refusal(**{name: "minioadmin"})
    assert error.setting == name and "minioadmin" not in str(error)


def test_no_limit_for_waiting_stores_as_in_llmd() -> None:
    config = EngineConfig.from_settings(settings(max_write_queued_seconds=0))
    assert config.store_queue_seconds > 86_400 * 365


@pytest.mark.parametrize(
    ("threads", "ratio", "load_only"),
    [(12, 0.75, 3), (12, 0, 0), (12, 1, 4), (4, 0.75, 1), (1, 1, 0), (2, 0.01, 1), (256, 1, 85)],
)
def test_threads_for_loads_alone(threads: int, ratio: float, load_only: int) -> None:
    found = settings(threads_per_gpu=threads, read_preferring_ratio=ratio)
    assert found.load_only_threads == load_only


@given(st.integers(1, 256), st.floats(0, 1))
def test_stores_always_have_a_thread(threads: int, ratio: float) -> None:
    found = settings(threads_per_gpu=threads, read_preferring_ratio=ratio)
    assert 0 <= found.load_only_threads < threads


def test_settings_reach_the_engine() -> None:
    config = EngineConfig.from_settings(
        settings(
            threads_per_gpu=5,
            lookup_threads=6,
            piece_mib=2,
            max_staging_memory_gb=0.5,
            max_write_queued_seconds=7,
            store_timeout_seconds=8,
            load_timeout_seconds=9,
            lookup_timeout_seconds=1,
            touch_interval_seconds=10,
            verify=False,
            direct="auto",
            durability="full",
            file_mode="0600",
            dir_mode="0700",
        )
    )
    assert (config.io_threads, config.load_only_threads, config.lookup_threads) == (5, 1, 6)
    assert (config.piece_bytes, config.write_buffer_bytes) == (2 << 20, 500_000_000)
    assert (config.store_queue_seconds, config.store_timeout_seconds) == (7, 8)
    assert (config.load_timeout_seconds, config.lookup_timeout_seconds) == (9, 1)
    assert (config.touch_interval_seconds, config.verify) == (10, False)
    assert (config.direct, config.durability) == (Direct.AUTO, Durability.FULL)
    assert (config.file_mode, config.dir_mode) == (0o600, 0o700)


def test_the_default_number_of_threads_follows_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((None, 4), (1, 4), (8, 8), (16, 12), (200, 12)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert settings().threads_per_gpu == threads


@pytest.mark.parametrize(("value", "packs"), [("auto", False), ("on", True), ("off", False)])
def test_what_compress_means(value: str, packs: bool) -> None:
    assert EngineConfig.from_settings(settings(compress=value)).compress is packs


@pytest.mark.parametrize("value", ["yes", "ON", "", True, 1])
def test_a_wrong_value_of_compress_is_one_clear_error(value: Any) -> None:
    error = refusal(compress=value)
    assert str(error).startswith(f"compress={value!r}") and "auto, on, off" in str(error)
