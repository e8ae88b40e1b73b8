"""vLLM's offloading through host memory on a machine without a GPU.

vLLM refuses it there ("only supported on CUDA-alike"), though all that it needs of a GPU are
streams, events and one operation that copies a list of ranges. Here these are the CPU's: everything
else, the layouts, the memory that ranks share, the managers of the tiers, is vLLM's own code.
For ``spec_module_path`` of the engines that tests start; no user needs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches
from vllm.v1.kv_offload.cpu import gpu_worker
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class _KVTensor(torch.Tensor):
    """Block memory of the CPU that passes for a GPU's."""

    is_cuda = True


class _Event:
    """Copies are done when they were asked for, so an event is the time of that."""

    def __init__(self, enable_timing: bool = False) -> None:
        del enable_timing
        self._at = 0.0

    def record(self, stream: Any) -> None:
        del stream
        self._at = time.monotonic()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: _Event) -> float:
        return (other._at - self._at) * 1e3


class _Stream:
    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass


def _copy(source: Any, target: Any, sizes: Any, *, is_src_access_order_any: bool) -> None:
    del is_src_access_order_any  # how a GPU may reorder reads
    rows = zip(source.tolist(), target.tolist(), sizes.tolist(), strict=True)
    for address, to, size in rows:
        ctypes.memmove(to, address, size)


def _select(*args: Any) -> Any:
    del args
    return _copy


class _HostWorker:
    """A mix-in for vLLM's two specs: their worker, on the CPU."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Any:
        gpu_worker.current_platform = SimpleNamespace(  # type: ignore[attr-defined]
            Stream=_Stream,
            current_stream=_Stream,
            stream=contextlib.nullcontext,
            is_cuda_alike=lambda: False,
            is_xpu=lambda: False,
            is_rocm=lambda: False,
        )
        gpu_worker._select_swap_blocks_fn = _select
        gpu_worker.torch = _torch_with(Event=_Event)  # type: ignore[attr-defined]
        tensors = [
            replace(each, tensor=each.tensor.as_subclass(_KVTensor)) for each in kv_caches.tensors
        ]
        rank = self.config.parallel.rank  # type: ignore[attr-defined]
        with mock.patch.object(torch.accelerator, "current_device_index", lambda: rank):  # 0.31
            return self.create_worker(replace(kv_caches, tensors=tensors))  # type: ignore[attr-defined]


def _torch_with(**names: Any) -> Any:
    return SimpleNamespace(**{**vars(torch), **names})


class HostTieringSpec(_HostWorker, TieringOffloadingSpec):
    """Block memory, host memory, and the tiers behind it."""


class HostOffloadingSpec(_HostWorker, CPUOffloadingSpec):
    """Block memory and host memory."""


def tier_config(shelf: Path, *, chunk_tokens: int, canonical: bool) -> dict[str, Any]:
    """The ``kv_transfer_config`` of an engine with host memory and our tier behind it.

    ``canonical`` asks vLLM for the layout that all tensor parallel sizes share.
    """
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": HostTieringSpec.__name__,
            "spec_module_path": __name__,
            "cpu_bytes_to_use": 256_000_000,
            "block_size": chunk_tokens,
            "canonical_layout": canonical,
            "secondary_tiers": [
                {
                    "type": "KvshelfTier",
                    "module_path": "kvshelf.vllm.tier",
                    "root_dir": str(shelf),
                    "admission": "always",
                }
            ],
        },
    }


def host_config(chunk_tokens: int) -> dict[str, Any]:
    """The ``kv_transfer_config`` of vLLM's own offloading to host memory."""
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": HostOffloadingSpec.__name__,
            "spec_module_path": __name__,
            "cpu_bytes_to_use": 64_000_000,
            "block_size": chunk_tokens,
        },
    }
