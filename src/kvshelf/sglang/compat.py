"""Where SGLang's versions differ, 0.5.17 to 0.5.23."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import sglang
from sglang.srt.mem_cache import utils
from sglang.srt.mem_cache.hicache_storage import PoolTransferResult


def engine_version() -> str:
    """The release, such as "0.5.23": each may lay out KV otherwise."""
    match = re.match(r"\d+(\.\d+)*", sglang.__version__)
    return match.group() if match else str(sglang.__version__)


def server_arguments() -> Any:
    """The ServerArgs of this process."""
    try:
        from sglang.srt.runtime_context import get_server_args  # noqa: PLC0415 - since 0.5.2x
    except ImportError:
        from sglang.srt.server_args import get_global_server_args as get_server_args  # noqa: PLC0415
    return get_server_args()


def hashes_know_namespaces() -> bool:
    """Whether page hashes hold a request's ``extra_key`` and ``cache_salt``."""
    return hasattr(utils, "get_storage_hash_str")


def pool_result(pages: int, hits: dict[str, int], restorable: list[int]) -> PoolTransferResult:
    """What ``batch_exists_v2`` answers; older versions take no list of restorable lengths."""
    more: dict[str, Any] = {}
    if "restorable_prefix_pages" in {each.name for each in dataclasses.fields(PoolTransferResult)}:
        more["restorable_prefix_pages"] = restorable
    return PoolTransferResult(pages, hits, **more)
