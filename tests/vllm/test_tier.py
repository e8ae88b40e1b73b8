"""KvshelfTier on a memoryview, driven as vLLM's TieringOffloadingManager drives it; no engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.kv_offload.base import LookupResult  # noqa: E402

from kvshelf import Identity  # noqa: E402
from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.vllm.adopt import has_tier  # noqa: E402
from kvshelf.vllm.tier import KvshelfTier, tier_identity, tier_settings  # noqa: E402

from .jobs import (  # noqa: E402
    IDENTITY,
    has_setting,
    key,
    tier_config,
    tier_spec,
    transfer_job,
)
from .tiers import ROW_BYTES, ROWS, Engine, files, moved  # noqa: E402


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def engines(root: Path) -> Iterator[tuple[Engine, Engine]]:
    pair = Engine(root), Engine(root)
    yield pair
    for engine in pair:
        engine.tier.shutdown()


def test_what_one_engine_stores_another_loads(engines: tuple[Engine, Engine], root: Path) -> None:
    writer, reader = engines
    keys = [key(1), key(2), key(3, group=1)]
    assert writer.lookup(*keys) == [LookupResult.MISS] * 3
    stored = writer.run("store", keys, [4, 9, 2])
    assert stored.success and getattr(stored, "transfer_bytes", 3 * ROW_BYTES) == 3 * ROW_BYTES
    assert len(files(root)) == 3 and writer.lookup(*keys) == [LookupResult.HIT] * 3
    reader.memory[:] = 0
    assert reader.lookup(*keys) == [LookupResult.HIT] * 3
    assert reader.run("load", keys, [7, 0, 1]).success
    np.testing.assert_array_equal(reader.memory[[7, 0, 1]], writer.memory[[4, 9, 2]])
    assert not reader.memory[8:].any()


def test_what_is_there_is_not_stored_again(engines: tuple[Engine, Engine], root: Path) -> None:
    writer, _ = engines
    writer.run("store", [key(1)], [4])
    with files(root)[0].open("rb") as first:  # held open: no other file gets its inode
        again = writer.run("store", [key(1)], [4])
        # Nothing was written: else vLLM takes storage for fast, and its back-pressure never begins.
        assert again.success and moved(again) in (0, None)
        some = writer.run("store", [key(1), key(2)], [4, 5])
        assert some.success and moved(some) in (ROW_BYTES, None)
        assert len(files(root)) == 2
        # Its times may change: it was used.
        assert os.path.samestat(files(root)[0].stat(), os.fstat(first.fileno()))


@pytest.mark.parametrize("damage", ["removed", "flipped", "short"])
def test_a_load_says_which_chunks_came(
    damage: str, engines: tuple[Engine, Engine], root: Path
) -> None:
    writer, reader = engines
    keys = [key(i) for i in range(4)]
    writer.run("store", keys, [0, 1, 2, 3])
    assert reader.lookup(*keys) == [LookupResult.HIT] * 4
    (bad,) = [path for path in files(root) if path.name.startswith(keys[1][:-4].hex())]
    data = bytearray(bad.read_bytes())
    bad.unlink()
    if damage != "removed":
        data[5000] ^= 1
        bad.write_bytes(data if damage == "flipped" else data[:-4096])
    reader.memory[:] = 0
    result = reader.run("load", keys, [8, 9, 10, 11])
    assert not result.success
    if hasattr(result, "successful_keys"):  # before 0.28 all chunks of a job share its fate
        assert set(result.successful_keys) == {keys[0], keys[2], keys[3]}
    np.testing.assert_array_equal(reader.memory[[8, 10, 11]], writer.memory[[0, 2, 3]])
    # It is not tried again for a while, and stored anew when it was computed.
    assert reader.lookup(keys[1]) == [LookupResult.MISS]
    assert reader.run("store", [keys[1]], [1]).success
    assert reader.lookup(keys[1]) == [LookupResult.HIT]


@pytest.mark.parametrize("kind", ["store", "load"])
def test_an_engine_that_refuses_a_job_fails_it_and_nothing_else(
    kind: str, engines: tuple[Engine, Engine], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a closed one does. vLLM computes the chunks, and goes on."""
    engine, _ = engines
    engine.run("store", [key(1)], [4])
    before = engine.memory.copy()

    def refuse(*_: Any) -> None:
        raise RuntimeError("closed")

    with monkeypatch.context() as patch:
        patch.setattr(engine.tier._shelf, f"submit_{kind}", refuse)
        result = engine.run(kind, [key(1) if kind == "load" else key(2)], [5])
    assert not result.success and getattr(result, "successful_keys", None) is None
    np.testing.assert_array_equal(engine.memory, before)
    if kind == "load":  # it is not tried again for a while
        assert engine.lookup(key(1)) == [LookupResult.MISS]
    assert engine.run("store", [key(3)], [6]).success and len(files(root)) == 2


def test_nothing_loaded_is_no_partial_success(engines: tuple[Engine, Engine]) -> None:
    _, reader = engines
    result = reader.run("load", [key(1)], [3])
    assert not result.success and getattr(result, "successful_keys", None) is None


def test_drain_waits_for_every_job(engines: tuple[Engine, Engine]) -> None:
    tier = engines[0].tier
    for job in range(5):
        tier.submit_store(transfer_job(job, [key(job)], [job], is_load=False))
    tier.drain_jobs()
    assert sorted(result.job_id for result in tier.get_finished_jobs()) == list(range(5))


def test_the_place_of_the_class_is_no_setting(root: Path) -> None:
    memory = memoryview(np.zeros((2, 4096), np.uint8))
    tier = KvshelfTier(
        tier_spec(), memory, root_dir=str(root), module_path="kvshelf.vllm.tier", evict=False
    )
    tier.shutdown()


def test_memory_can_be_given_back_after_shutdown(root: Path) -> None:
    # As vLLM does: a reference to its memory would raise BufferError here.
    data = bytearray(ROWS * ROW_BYTES)
    view = memoryview(data).cast("B", (ROWS, ROW_BYTES))
    tier = KvshelfTier(tier_spec(), view, root_dir=str(root), evict=False)
    tier.submit_store(transfer_job(1, [key(1)], [0], is_load=False))
    tier.shutdown()
    view.release()
    data.clear()


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"root_dir": "/x", "shared_storage_path": "/y"}, "root_dir"),
        ({"root_dir": "/x", "n_read_threads": 0}, "n_read_threads"),
        ({"root_dir": "/x", "n_write_threads": "4"}, "n_write_threads"),
        ({"root_dir": "/x", "block_size": 256}, "block_size"),
        ({"root_dir": "/x", "threads": 4}, "threads"),
        ({"root_dir": "/x", "enable_events": True}, "enable_events"),
        ({"root_dir": "/x", "bucket": "kv"}, "bucket"),
        ({}, "shared_storage_path"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tier_settings(options)
    assert caught.value.setting == setting


def test_settings_of_the_built_in_tier_are_taken() -> None:
    settings = tier_settings({"root_dir": "/x", "n_read_threads": 5, "n_write_threads": 3})
    assert settings.shared_storage_path == "/x" and settings.threads_per_gpu == 8
    assert tier_settings({"root_dir": "/x", "threads_per_gpu": 7}).threads_per_gpu == 7


@pytest.mark.parametrize(("cores", "threads"), [(2, 4), (16, 16), (192, 32)])
def test_one_tier_serves_all_ranks_with_more_threads(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert tier_settings({"root_dir": "/x"}).threads_per_gpu == threads
    assert tier_settings({"root_dir": "/x", "load_timeout_seconds": 7}).load_timeout_seconds == 7


def test_without_the_plugin_it_is_refused(root: Path) -> None:
    bare = tier_spec(tier_config(extra_config={}))
    with pytest.raises(ConfigError, match="plugin"):
        KvshelfTier(bare, memoryview(np.zeros((2, 4096), np.uint8)), root_dir=str(root))
    assert not root.exists()


@pytest.mark.skipif(
    not has_setting("kv_cache_layout"), reason="this vLLM has no such layouts, or asks an engine"
)
class TestWhoShares:
    def test_other_parallel_sizes_do_where_vllm_certifies_it(self) -> None:
        other = Identity(
            {
                "model": "m",
                "parallel": {"tensor": 1},
                "groups": [{"layers": 4, "num_kv_heads": 4, "page_bytes": 128}],
            }
        )
        for kind in ("canonical_layout", "replicated_layout"):
            certified = tier_config(**{kind: True})
            mine = tier_identity(IDENTITY, certified, ROW_BYTES)
            assert mine.digest == tier_identity(other, certified, ROW_BYTES).digest
            assert mine.digest != tier_identity(other, certified, 2 * ROW_BYTES).digest

    @pytest.mark.parametrize(
        "changes",
        [{}, {"agnostic": False}, {"canonical_layout": True, "agnostic": False}],
        ids=["direct", "direct, not agnostic", "canonical, not agnostic"],
    )
    def test_nobody_else_does(self, changes: dict[str, Any]) -> None:
        other = Identity({**IDENTITY.fields, "parallel": {"tensor": 1}})
        uncertified = tier_config(**changes)
        mine, theirs = (tier_identity(i, uncertified, ROW_BYTES) for i in (IDENTITY, other))
        assert mine.digest != theirs.digest

    def test_layouts_are_kept_apart(self) -> None:
        made = [
            tier_config(),
            tier_config(canonical_layout=True),
            tier_config(canonical_layout=True, kv_cache_layout="LBHNC"),
            tier_config(replicated_layout=True),
        ]
        digests = {tier_identity(IDENTITY, each, ROW_BYTES).digest for each in made}
        assert len(digests) >= 3 and IDENTITY.digest not in digests


def test_the_connector_knows_our_tier() -> None:
    assert has_tier({"secondary_tiers": [{"type": "fs"}, {"type": "KvshelfTier"}]})
    assert not has_tier({"secondary_tiers": [{"type": "fs"}]}) and not has_tier({})
