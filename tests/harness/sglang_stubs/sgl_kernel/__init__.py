"""Stands in for SGLang's kernels where there is no GPU: what an engine on a CPU really calls.

No wheel of ``sgl_kernel`` exists for CPUs. Every name can be imported, also of submodules; all but
the functions below raise when they are called.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch


class _Missing:
    """A name that this module lacks: it has attributes, which are missing too."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{self.__name__}: no kernel on this CPU")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}")


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return globals().get(name) or _Missing(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes ``sgl_kernel.anything``."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.startswith(f"{__name__}."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return None


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offsets: torch.Tensor,
    end_offsets: torch.Tensor,
    out_cache_loc: torch.Tensor,
    row_tokens: int = 0,
) -> None:
    """Write each request's new cache locations into its row of the table."""
    del row_tokens
    taken = 0
    rows = zip(req_pool_indices, start_offsets.tolist(), end_offsets.tolist(), strict=True)
    for row, start, end in rows:
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start].to(
            req_to_token.dtype
        )
        taken += end - start


def copy_rows(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy tokens' rows of each layer by index; between host and device pool."""
    del page_size
    for src, dst in zip(src_layers, dst_layers, strict=True):
        dst[dst_indices] = src[src_indices]


class _Runtime:
    """CUDA's runtime as far as pinning memory goes: there is nothing to pin."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *args: 0


def _without_pinning(make: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        return make(*args, **kwargs)

    return call


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Missing(f"{__name__}.{name}")


# Host pools import it only where there is a GPU, and call it by this bare name all the same.
builtins.transfer_kv_direct = copy_rows  # type: ignore[attr-defined]
sys.meta_path.append(_Finder())
if not torch.cuda.is_available():
    torch.cuda.cudart = _Runtime  # type: ignore[assignment]
    torch.zeros = _without_pinning(torch.zeros)
    torch.empty = _without_pinning(torch.empty)
