"""SGLang's KV cache on a shelf: a storage backend of HiCache.

    --hicache-storage-backend dynamic --hicache-storage-backend-extra-config
    '{"backend_name": "kvshelf", "module_path": "kvshelf.sglang", "class_name": "KvshelfStorage",
      "interface_v1": 1, "shared_storage_path": "/mnt/shared/kv"}'

docs/howto/sglang.md is the page for users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvshelf.sglang.storage import KvshelfStorage


def __getattr__(name: str) -> Any:
    """Import when first used: what knows no SGLang can be used without it."""
    if name != "KvshelfStorage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvshelf.sglang.storage import KvshelfStorage  # noqa: PLC0415

    return KvshelfStorage


__all__ = ["KvshelfStorage"]
