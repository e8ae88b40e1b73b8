"""SGLang's host memory as block memory: a page of tokens is a block."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvshelf.engine import GroupMemory, Pages
from kvshelf.errors import ConfigError


class HostPages:
    """The pages of one host pool, where they lie.

    The pool says where a page's runs of bytes are (one run a layer and K or V, or one for all
    layers, by its layout); every page has the same runs at equal distances.

    Args:
        pool: SGLang's HostKVCache. Its memory must outlive what is made from ``memory``.

    Raises:
        ConfigError: the layout has no such runs.
    """

    def __init__(self, pool: Any) -> None:
        self.page_tokens = int(getattr(pool, "page_size", 1) or 1)  # of states: 1
        self.layout = str(getattr(pool, "layout", ""))
        count = int(pool.size) // self.page_tokens
        try:
            first, sizes = self._runs(pool, 0)
            second, _ = self._runs(pool, min(1, count - 1))
            last, last_sizes = self._runs(pool, count - 1)
        except (AttributeError, ValueError, NotImplementedError) as error:
            raise self._refusal(pool, str(error)) from error
        if count == 1:
            second = [at + size for at, size in zip(first, sizes, strict=True)]
        strides = [b - a for a, b in zip(first, second, strict=True)]
        ends = [a + (count - 1) * s for a, s in zip(first, strides, strict=True)]
        if (
            ends != last
            or sizes != last_sizes
            or any(s < n for s, n in zip(strides, sizes, strict=True))
        ):
            raise self._refusal(pool, "pages do not lie at equal distances")
        runs = zip(first, strides, sizes, strict=True)
        self.memory = GroupMemory(
            tuple(Pages(at, stride_bytes=stride, page_bytes=size) for at, stride, size in runs),
            num_blocks=count,
        )

    def rows(self, host_indices: torch.Tensor, pages: int) -> NDArray[np.int32]:
        """int32[pages]: the pages that these token slots are.

        Args:
            host_indices: int64[pages * page_tokens], slots of the pool.

        Raises:
            ValueError: they are not whole pages.
        """
        slots = host_indices.detach().cpu().numpy()
        if len(slots) != pages * self.page_tokens:
            raise ValueError(f"{len(slots)} slots for {pages} pages of {self.page_tokens} tokens")
        table = slots.reshape(pages, self.page_tokens)
        rows = table[:, 0] // self.page_tokens
        if not (table == rows[:, None] * self.page_tokens + np.arange(self.page_tokens)).all():
            raise ValueError("slots that are no whole pages")
        return rows.astype(np.int32)

    def _runs(self, pool: Any, page: int) -> tuple[list[int], list[int]]:
        begin = page * self.page_tokens
        addresses, sizes = pool.get_page_buffer_meta(torch.arange(begin, begin + self.page_tokens))
        return [int(each) for each in addresses], [int(each) for each in sizes]

    def _refusal(self, pool: Any, why: str) -> ConfigError:
        return ConfigError(
            "hicache_mem_layout",
            self.layout,
            f"kvshelf cannot address pages of {type(pool).__name__}: {why}",
        )
