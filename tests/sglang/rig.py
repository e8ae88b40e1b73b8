"""SGLang's classes without an engine: its host pool, backend factory and controller are real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from sglang.srt.managers.cache_controller import (
    HiCacheController,
    PrefetchOperation,
    StorageOperation,
)
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.storage import StorageBackendFactory

from tests.harness.sglang_engines import storage_config

PAGE_TOKENS = 16
LAYERS, HEADS, HEAD_DIM = 3, 2, 8


def make_pool(
    layout: str = "layer_first",
    pages: int = 32,
    seed: int = 0,
    *,
    layers: int = LAYERS,
    heads: int = HEADS,
    head_dim: int = HEAD_DIM,
) -> Any:
    """A host pool of random KV: SGLang's class over memory that needs no GPU to copy from."""
    pool = object.__new__(MHATokenToKVPoolHost)
    size = pages * PAGE_TOKENS
    for name, value in {
        "page_size": PAGE_TOKENS,
        "size": size,
        "page_num": pages,
        "layout": layout,
        "layer_num": layers,
        "head_num": heads,
        "head_dim": head_dim,
        "v_head_dim": head_dim,
        "dtype": torch.float32,
        "start_layer": 0,
        "end_layer": layers,
        "device": "cpu",
        "pin_memory": False,
    }.items():
        setattr(pool, name, value)
    token = (heads, head_dim)
    shape = {
        "layer_first": (2, layers, size, *token),
        "page_first": (2, size, layers, *token),
        "page_first_direct": (2, pages, layers, PAGE_TOKENS, *token),
    }[layout]
    pool.kv_buffer = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return pool


def make_mla_pool(layout: str = "layer_first", pages: int = 32, seed: int = 0) -> Any:
    """The same for a model whose ranks have the same KV."""
    pool = object.__new__(MLATokenToKVPoolHost)
    size = pages * PAGE_TOKENS
    for name, value in {
        "page_size": PAGE_TOKENS,
        "size": size,
        "page_num": pages,
        "layout": layout,
        "layer_num": LAYERS,
        "kv_lora_rank": 12,
        "qk_rope_head_dim": 4,
        "kv_cache_dim": 16,
        "dtype": torch.float32,
        "start_layer": 0,
        "end_layer": LAYERS,
    }.items():
        setattr(pool, name, value)
    shape = {
        "layer_first": (LAYERS, size, 1, 16),
        "page_first": (size, LAYERS, 1, 16),
    }[layout]
    pool.kv_buffer = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return pool


def page_bytes(pool: Any, page: int) -> bytes:
    """All bytes of a page, by the tensor's own indexes rather than by its addresses."""
    buffer, begin = pool.kv_buffer, page * PAGE_TOKENS
    axis = {"layer_first": -3, "page_first": -4}.get(pool.layout)
    if axis is None:  # pages have an axis of their own
        part = buffer.select(1, page)
    else:
        part = buffer.narrow(axis + buffer.dim(), begin, PAGE_TOKENS)
    return bytes(part.contiguous().numpy().tobytes())


def slots(pages: list[int]) -> torch.Tensor:
    """Token slots of whole pages."""
    return torch.cat([torch.arange(p * PAGE_TOKENS, (p + 1) * PAGE_TOKENS) for p in pages])


def hashes(count: int, seed: int = 0) -> list[str]:
    """Page hashes, as long as SGLang's."""
    return [f"{seed:032x}{page:032x}" for page in range(count)]


def config_of(shelf: Path, **parts: Any) -> HiCacheStorageConfig:
    """What SGLang hands to a backend; ``extra`` are settings of kvshelf."""
    extra = storage_config(shelf, **parts.pop("extra", {}))
    extra.pop("prefetch_threshold")  # SGLang takes its own out
    values = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": False,
        "is_page_first_layout": False,
        "model_name": "tiny",
        "extra_config": extra,
    }
    return HiCacheStorageConfig(**{**values, **parts})


def make_model(folder: Path, weights: bytes = b"weights") -> Path:
    """Files that say which model this is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def arguments(model: Path, **more: Any) -> SimpleNamespace:
    """SGLang's server arguments, those that matter."""
    return SimpleNamespace(model_path=str(model), load_format="auto", dtype="float32", **more)


@contextmanager
def backend_of(
    shelf: Path, pool: Any, server_args: Any, config: HiCacheStorageConfig | None = None
) -> Iterator[Any]:
    """A backend made and registered as SGLang does; closed at the end."""
    with mock.patch("kvshelf.sglang.storage.server_arguments", lambda: server_args):
        backend = StorageBackendFactory.create_backend("dynamic", config or config_of(shelf), pool)
        try:
            backend.register_mem_pool_host(pool)
            yield backend
        finally:
            backend.close()


def controller_of(pool: Any, backend: Any) -> HiCacheController:
    """SGLang's controller as far as moving pages goes: no device pool, no process groups."""
    controller = object.__new__(HiCacheController)
    controller.page_size = PAGE_TOKENS
    controller.mem_pool_host = controller.storage_host_pool = pool
    controller.storage_backend = backend
    controller.has_draft = False  # 0.5.17 asks
    controller.prefetch_sync_queue = SimpleQueue()
    controller.page_get_func = controller._page_get_zero_copy
    controller.page_set_func = controller._page_set_zero_copy
    return controller


def back_up(controller: HiCacheController, keys: list[str], pages: list[int]) -> int:
    """Store pages as SGLang's backup thread does; how many it takes for stored."""
    operation = StorageOperation(slots(pages), [0] * len(pages) * PAGE_TOKENS, hash_value=keys)
    controller._page_backup(operation)
    return int(operation.completed_tokens) // PAGE_TOKENS


def prefetch(controller: HiCacheController, keys: list[str], pages: list[int]) -> int:
    """Load pages as SGLang's prefetch thread does; how many it takes for loaded."""
    operation = PrefetchOperation("request", [0] * len(pages) * PAGE_TOKENS)
    operation.hash_value, operation.host_indices = keys, slots(pages)
    loaded = controller._page_transfer(operation)
    return int(operation.completed_tokens) // PAGE_TOKENS if loaded is None else int(loaded)
