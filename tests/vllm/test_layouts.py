"""Chunks of one tensor parallel size read by another, in layouts that vLLM's own code maps.

Ranks' block memory is cut from one KV cache; vLLM's worker copies it to host memory by its own
mapping; KvshelfTier stores it. No engine: only sizes for which a small machine has no room.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from .jobs import CONTEXT, has_setting, transfer_job  # noqa: E402

if not has_setting("kv_cache_layout"):
    pytest.skip("this vLLM has no canonical layout", allow_module_level=True)

import torch  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.offloading import config as offloading  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping import (  # noqa: E402
    derive_canonical_mappings,
)
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
)
from vllm.v1.kv_offload.base import (  # noqa: E402
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    LookupResult,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.cpu import gpu_worker  # noqa: E402
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec  # noqa: E402

from kvshelf import make_key  # noqa: E402
from kvshelf.vllm.identity import build_identity  # noqa: E402
from kvshelf.vllm.spec import IDENTITY_KEY  # noqa: E402
from tests.harness.host_memory import HostTieringSpec  # noqa: E402

from .configs import vllm_config  # noqa: E402

HEADS, HEAD_SIZE, BLOCK, BLOCKS, LAYERS = 4, 32, 32, 8, 2
STEP_END = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())
KEYS = [make_key(bytes([i]) * 32, 0) for i in range(4)]
ENGINE_IDS = itertools.count()


def attention(tp: int, *, latent: bool) -> Any:
    if latent:
        return MLAAttentionSpec(
            block_size=BLOCK, num_kv_heads=1, head_size=HEAD_SIZE, dtype=torch.float32
        )
    heads = max(1, HEADS // tp)
    return FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=heads, head_size=HEAD_SIZE, dtype=torch.float32
    )


class Ranks:
    """The block memory and the host memory of all ranks of one engine, and its tier."""

    def __init__(self, folder: Path, root: Path, tp: int, *, latent: bool, canonical: bool) -> None:
        self.tp, self.latent = tp, latent
        spec = attention(tp, latent=latent)
        names = [f"layers.{i}.attn" for i in range(LAYERS)]
        cache = KVCacheConfig(
            num_blocks=BLOCKS,
            kv_cache_tensors=[
                SimpleNamespace(  # the whole, whatever its parts are called in this vLLM
                    size=LAYERS * BLOCKS * spec.page_size_bytes, shared_by=names, block_stride=0
                )
            ],
            kv_cache_groups=[KVCacheGroupSpec(names, spec)],
        )
        self.whole = [self._empty(spec, 1 if latent else HEADS) for _ in names]
        self.specs: list[Any] = []
        self.workers: list[Any] = []
        self.memory: list[list[torch.Tensor]] = []
        engine_id = f"kvshelf-test-{id(self)}-{next(ENGINE_IDS)}"
        for rank in range(tp):
            made = vllm_config(folder, kv_transfer_config=transfer(root, engine_id, canonical))
            made.cache_config.kv_cache_layout = "LBHNC"  # as vLLM resolves it for these shapes
            parallel = made.parallel_config
            parallel.tensor_parallel_size = parallel.world_size = tp
            parallel.rank = rank
            extra = made.kv_transfer_config.kv_connector_extra_config
            extra[IDENTITY_KEY] = build_identity(made, cache, "")
            config = offloading.build_offloading_config(made, cache)
            self.is_certified = config.parallel.is_parallelism_agnostic
            tensors = [self._empty(spec, spec.num_kv_heads) for _ in names]
            mappings = derive_canonical_mappings(
                made, cache, dict(zip(names, tensors, strict=True))
            )
            refs = [
                CanonicalKVCacheRef(i, spec.page_size_bytes, mappings.get(name))
                for i, name in enumerate(names)
            ]
            pages = [
                CanonicalKVCacheTensor(each.view(torch.int8).view(BLOCKS, -1), spec.page_size_bytes)
                for each in tensors
            ]
            host = HostTieringSpec(config)
            self.specs.append(host)
            self.memory.append(tensors)
            if rank == 0:  # the scheduler makes the region, as in vLLM
                self.manager = host.get_manager()
                self.tier: Any = self.manager.secondary_tiers[0]
            self.workers.append(host.get_worker(CanonicalKVCaches(pages, [refs])))

    def _empty(self, spec: Any, heads: int) -> torch.Tensor:
        shape = (BLOCKS, BLOCK, HEAD_SIZE) if self.latent else (BLOCKS, heads, BLOCK, 2 * HEAD_SIZE)
        return torch.zeros(shape, dtype=torch.float32)

    def shard(self, rank: int, layer: torch.Tensor) -> torch.Tensor:
        if self.latent:
            return layer
        each = HEADS // self.tp
        return layer[:, rank * each : (rank + 1) * each]

    def fill(self, layers: list[torch.Tensor]) -> None:
        for rank, tensors in enumerate(self.memory):
            for tensor, layer in zip(tensors, layers, strict=True):
                tensor.copy_(self.shard(rank, layer))

    def store(self, blocks: list[int], rows: list[int]) -> None:
        for job, worker in enumerate(self.workers):
            blocks_of = GPULoadStoreSpec(blocks, [len(blocks)], [0])
            assert worker.submit_store(job, blocks_of, CPULoadStoreSpec(rows))
            assert [result.success for result in worker.get_finished()] == [True]
        keys = KEYS[: len(rows)]
        self.tier.submit_store(transfer_job(1, keys, rows, is_load=False))
        assert self._result().success

    def load(self, rows: list[int], blocks: list[int]) -> None:
        keys = KEYS[: len(rows)]
        self.tier.submit_load(transfer_job(2, keys, rows, is_load=True))
        assert self._result().success
        for job, worker in enumerate(self.workers):
            blocks_of = GPULoadStoreSpec(blocks, [len(blocks)], [0])
            assert worker.submit_load(job, CPULoadStoreSpec(rows), blocks_of)
            assert [result.success for result in worker.get_finished()] == [True]

    def lookup(self) -> list[LookupResult]:
        deadline = time.monotonic() + 20
        while True:
            answers = [self.tier.lookup(key, CONTEXT) for key in KEYS[:2]]
            self.tier.on_schedule_end(STEP_END)
            if LookupResult.RETRY not in answers:
                return answers
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def close(self) -> None:
        self.manager.shutdown()
        for worker in self.workers:
            worker.shutdown()

    def _result(self) -> Any:
        deadline = time.monotonic() + 20
        while not (results := list(self.tier.get_finished_jobs())):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return results[0]


def transfer(root: Path, engine_id: str, canonical: bool) -> dict[str, Any]:
    tier = {"type": "KvshelfTier", "module_path": "kvshelf.vllm.tier", "root_dir": str(root)}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "engine_id": engine_id,
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": 4 << 20,
            "block_size": 2 * BLOCK,
            "canonical_layout": canonical,
            "secondary_tiers": [{**tier, "evict": False}],
        },
    }


@pytest.fixture(autouse=True)
def undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stand-in changes in vLLM's module ends with the test."""
    for name in ("torch", "current_platform", "_select_swap_blocks_fn"):
        monkeypatch.setattr(gpu_worker, name, getattr(gpu_worker, name))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Any]:
    made: list[Ranks] = []

    def make(tp: int, *, latent: bool = False, canonical: bool = True) -> Ranks:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        made.append(Ranks(folder, tmp_path / "shelf", tp, latent=latent, canonical=canonical))
        return made[-1]

    yield make
    for ranks in made:
        ranks.close()


def some_cache(latent: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (BLOCKS, BLOCK, HEAD_SIZE) if latent else (BLOCKS, HEADS, BLOCK, 2 * HEAD_SIZE)
    return [torch.rand(shape, generator=generator) for _ in range(LAYERS)]


@pytest.mark.parametrize("latent", [False, True], ids=["heads", "latent"])
@pytest.mark.parametrize(("writer", "reader"), [(1, 2), (1, 4), (2, 1), (2, 4), (4, 1), (4, 2)])
def test_a_canonical_chunk_is_read_by_any_size(
    writer: int, reader: int, latent: bool, place: Any
) -> None:
    theirs, mine = place(writer, latent=latent), place(reader, latent=latent)
    cache = some_cache(latent)
    theirs.fill(cache)
    theirs.store(blocks=[1, 2, 5, 6], rows=[3, 0])
    same_rows = theirs.specs[0].kv_bytes_per_chunk == mine.specs[0].kv_bytes_per_chunk
    if not (theirs.is_certified and same_rows):  # 0.29 and 0.30 keep a latent once a rank
        assert mine.lookup() == [LookupResult.MISS] * 2
        return
    assert mine.lookup() == [LookupResult.HIT] * 2
    mine.load(rows=[2, 4], blocks=[7, 0, 3, 4])
    for rank, tensors in enumerate(mine.memory):
        for tensor, layer in zip(tensors, cache, strict=True):
            wanted = mine.shard(rank, layer)
            assert torch.equal(tensor[[7, 0, 3, 4]], wanted[[1, 2, 5, 6]])
            assert not tensor[[1, 2, 5, 6]].any()


@pytest.mark.parametrize(("writer", "reader"), [(1, 2), (2, 1), (2, 4)])
def test_without_the_canonical_layout_another_size_finds_nothing(
    writer: int, reader: int, place: Any
) -> None:
    theirs = place(writer, canonical=False)
    theirs.fill(some_cache(False))
    theirs.store(blocks=[1, 2, 5, 6], rows=[3, 0])
    assert theirs.lookup() == [LookupResult.HIT] * 2
    for canonical in (False, True):
        assert place(reader, canonical=canonical).lookup() == [LookupResult.MISS] * 2
    assert place(writer, canonical=False).lookup() == [LookupResult.HIT] * 2
