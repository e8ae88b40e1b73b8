"""Chunk sizes of models with several KV cache groups, through vLLM's own translation of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import (  # noqa: E402
    build_offloading_config,
)
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.vllm import chunking, compat, plugin  # noqa: E402
from kvshelf.vllm.chunking import settle_chunk  # noqa: E402
from kvshelf.vllm.connector import KvshelfConnector  # noqa: E402
from kvshelf.vllm.identity import build_identity  # noqa: E402

from .configs import vllm_config  # noqa: E402

HEAD = {"num_kv_heads": 4, "head_size": 32, "dtype": torch.float32}


def spec(kind: str, tokens: int) -> Any:
    if kind == "mamba":
        return MambaSpec(
            block_size=tokens,
            shapes=((8, 64),),
            dtypes=(torch.float32,),
            mamba_cache_mode="align",
        )
    if kind == "window":
        return SlidingWindowSpec(block_size=tokens, sliding_window=64, **HEAD)
    return FullAttentionSpec(block_size=tokens, **HEAD)


def cache(*groups: tuple[str, int]) -> Any:
    return KVCacheConfig(
        num_blocks=16,
        kv_cache_tensors=[],
        kv_cache_groups=[
            KVCacheGroupSpec([f"layers.{g}.{i}.attn" for i in range(2)], spec(*group))
            for g, group in enumerate(groups)
        ],
    )


def config(tmp_path: Path, kv: Any, **extra: Any) -> Any:
    made = vllm_config(tmp_path / "tiny")
    # vLLM reads the size of a single group here, and before 0.28 that of a Mamba group.
    made.cache_config.block_size = kv.kv_cache_groups[-1].kv_cache_spec.block_size
    made.kv_transfer_config.kv_connector_extra_config = {
        "shared_storage_path": str(tmp_path / "shelf"),
        "evict": False,
        **extra,
    }
    return made


def settled(made: Any, kv: Any, *, tell: bool = True) -> dict[str, Any]:
    extra: dict[str, Any] = made.kv_transfer_config.kv_connector_extra_config
    chunking.default_chunk(extra)
    settle_chunk(made, kv, tell=tell)
    return extra


ONE = [("full", 32)]
TWO = [("full", 16), ("window", 32)]
BIG = [("full", 544)]
HYBRID = [("full", 544), ("mamba", 544)]
THREE = [("full", 16), ("window", 32), ("mamba", 544)]


@pytest.mark.parametrize(
    ("groups", "extra", "blocks"),
    [
        (ONE, {}, 8),
        (TWO, {}, 8),
        (BIG, {}, 1),
        (HYBRID, {}, 1),
        (THREE, {}, 1),
        (ONE, {"block_size": 64}, 2),
        (ONE, {"block_size": "64"}, 2),
        (ONE, {"block_size": 64.0}, 2),
        (ONE, {"block_size": 100}, 3),
        (ONE, {"block_size": 1}, 1),
        (TWO, {"block_size": 16}, 1),
        (TWO, {"block_size": 512}, 16),
        (HYBRID, {"block_size": 2000}, 3),
        (THREE, {"block_size": 1088}, 2),
        (ONE, {"blocks_per_chunk": 5}, 5),
        (TWO, {"blocks_per_chunk": "5"}, 5),
        (HYBRID, {"blocks_per_chunk": 2}, 2),
        (TWO, {"block_size": None, "blocks_per_chunk": None}, 8),
        (TWO, {"block_size": None, "blocks_per_chunk": 3}, 3),
    ],
)
def test_every_size_becomes_blocks_that_vllm_takes(
    groups: Any, extra: dict[str, Any], blocks: int, tmp_path: Path
) -> None:
    kv = cache(*groups)
    made = config(tmp_path, kv, **extra)
    assert settled(made, kv)["blocks_per_chunk"] == blocks
    offloading = build_offloading_config(made, kv)
    assert offloading.cache.blocks_per_chunk == blocks
    # A second process, or the other side in this one, finds the same.
    assert settled(made, kv)["blocks_per_chunk"] == blocks


@pytest.mark.parametrize("groups", [TWO, BIG, HYBRID, THREE])
@pytest.mark.parametrize("role", list(KVConnectorRole))
def test_a_hybrid_model_starts_without_a_size(
    groups: Any, role: KVConnectorRole, tmp_path: Path
) -> None:
    kv = cache(*groups)
    made = config(tmp_path, kv)
    if not compat.can_recover(len(groups)):
        with pytest.raises(ConfigError, match="KV cache groups"):  # in our words
            KvshelfConnector(made, role, kv)
        return
    connector = KvshelfConnector(made, role, kv)
    connector.shutdown()


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"block_size": 0}, "block_size"),
        ({"block_size": -64}, "block_size"),
        ({"block_size": 64.5}, "block_size"),
        ({"block_size": float("nan")}, "block_size"),
        ({"block_size": float("inf")}, "block_size"),
        ({"block_size": True}, "block_size"),
        ({"block_size": "many"}, "block_size"),
        ({"block_size": ""}, "block_size"),
        ({"block_size": [64]}, "block_size"),
        ({"block_size": 10**12}, "block_size"),
        ({"blocks_per_chunk": 0}, "blocks_per_chunk"),
        ({"blocks_per_chunk": -1}, "blocks_per_chunk"),
        ({"blocks_per_chunk": 1.5}, "blocks_per_chunk"),
        ({"blocks_per_chunk": "x"}, "blocks_per_chunk"),
        ({"blocks_per_chunk": 10**9}, "blocks_per_chunk"),
        ({"block_size": 64, "blocks_per_chunk": 2}, "blocks_per_chunk"),
    ],
)
def test_what_is_no_size_is_refused_by_name(
    extra: dict[str, Any], named: str, tmp_path: Path
) -> None:
    kv = cache(*TWO)
    made = config(tmp_path, kv, **extra)
    with pytest.raises(ConfigError) as caught:
        KvshelfConnector(made, KVConnectorRole.SCHEDULER, kv)
    assert caught.value.setting == named
    assert str(caught.value.value) == str(extra[named])  # NaN equals nothing


def test_a_cache_that_vllm_cannot_offload_is_refused_by_name(tmp_path: Path) -> None:
    """A Mamba state that is kept only at the end, as without prefix caching."""
    kv = cache(("full", 16), ("mamba", 544))
    object.__setattr__(kv.kv_cache_groups[1].kv_cache_spec, "mamba_cache_mode", "none")
    made = config(tmp_path, kv)
    made.cache_config.block_size = 16
    with pytest.raises(ConfigError, match="enable-prefix-caching") as caught:
        KvshelfConnector(made, KVConnectorRole.SCHEDULER, kv)
    assert caught.value.setting == "kv_connector"


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def log() -> Any:
    handler = Log()
    chunking.logger.addHandler(handler)
    yield handler
    chunking.logger.removeHandler(handler)


def test_a_conversion_is_said_once_by_the_scheduler_whoever_was_first(
    tmp_path: Path, log: Log
) -> None:
    kv = cache(*TWO)
    made = config(tmp_path, kv, block_size=100)
    settle_chunk(made, kv, tell=False)
    assert not log.lines
    settle_chunk(made, kv, tell=True)
    ((level, line),) = log.lines
    assert level == "INFO"
    assert "block_size=100 becomes blocks_per_chunk=3" in line and "48, 96 tokens" in line


def test_nothing_is_said_of_a_size_that_fits(tmp_path: Path, log: Log) -> None:
    settled(config(tmp_path, cache(*ONE)), cache(*ONE))
    assert not log.lines


def test_a_chunk_that_no_request_fills_is_warned_of(tmp_path: Path, log: Log) -> None:
    kv = cache(*ONE)
    settled(config(tmp_path, kv, block_size=4096), kv)
    ((level, line),) = log.lines
    assert level == "WARNING" and "4096 tokens" in line and "2048" in line


def test_who_shares_is_decided_by_the_blocks_not_by_how_they_were_said(tmp_path: Path) -> None:
    kv = cache(*ONE)
    digests = {
        says: identity(config(tmp_path, kv, **extra), kv)
        for says, extra in {
            "default": {},
            "tokens": {"block_size": 256},
            "text": {"block_size": "256"},
            "rounded": {"block_size": 260},
            "blocks": {"blocks_per_chunk": "8"},
            "others": {"block_size": 128},
        }.items()
    }
    other = digests.pop("others")
    assert len(set(digests.values())) == 1 and other not in digests.values()


def identity(made: Any, kv: Any) -> str:
    settled(made, kv, tell=False)
    return str(build_identity(made, kv, "").digest)


@pytest.mark.parametrize(
    ("extra", "blocks"),
    [({}, 1), ({"block_size": 256}, 8), ({"block_size": 40}, 1), ({"blocks_per_chunk": 4}, 4)],
)
def test_a_tier_has_vllms_default_and_takes_any_size(
    extra: dict[str, Any], blocks: int, tmp_path: Path
) -> None:
    """Without a size, host memory has chunks of one block, as vLLM documents it."""
    plugin.register()
    kv = cache(*ONE)
    tier = {"type": "KvshelfTier", "module_path": "kvshelf.vllm.tier", "root_dir": str(tmp_path)}
    made = config(tmp_path, kv, **extra)
    made.kv_transfer_config.kv_connector = "OffloadingConnector"
    given = made.kv_transfer_config.kv_connector_extra_config
    for name in ("shared_storage_path", "evict"):
        del given[name]
    given |= {
        "spec_name": "TieringOffloadingSpec",
        "cpu_bytes_to_use": 1 << 20,
        "secondary_tiers": [tier],
    }
    connector = KvshelfConnector(made, KVConnectorRole.WORKER, kv)
    assert given["blocks_per_chunk"] == blocks and "block_size" not in given
    connector.shutdown()
