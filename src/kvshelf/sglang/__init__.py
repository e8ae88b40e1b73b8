"""SGLang's KV cache on a shelf: a storage backend of HiCache.

    --hicache-storage-backend dynamic --hicache-storage-backend-extra-config
    '{"backend_name": "kvshelf", "module_path": "kvshelf.sglang", "class_name": "KvshelfStorage",
      "interface_v1": 1, "shared_storage_path": "/mnt/shared/kv"}'

docs/sglang.md is the page for users.
"""

from __future__ import annotations

from kvshelf.sglang.storage import KvshelfStorage

__all__ = ["KvshelfStorage"]
