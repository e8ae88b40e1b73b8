"""kvshelf: vLLM's KV cache on a shared file system.

Start with ``Shelf``; ``kvshelf.vllm`` is the plugin for vLLM and is never imported from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvshelf.config import Settings
    from kvshelf.disk.keys import ChunkKey, make_key
    from kvshelf.disk.namespace import Identity
    from kvshelf.engine import EngineConfig, FileStatus, GroupMemory, JobResult, Pages, Phase
    from kvshelf.errors import (
        ChunkFormatError,
        ConfigError,
        EngineClosedError,
        KvshelfError,
        NotAShelfError,
    )
    from kvshelf.shelf import Chunk, Shelf

# Imported when first used: the command line looks at shelves without NumPy, which starts threads.
_MODULES = {
    "Chunk": "shelf",
    "ChunkFormatError": "errors",
    "ChunkKey": "disk.keys",
    "ConfigError": "errors",
    "EngineClosedError": "errors",
    "EngineConfig": "engine",
    "FileStatus": "engine",
    "GroupMemory": "engine",
    "Identity": "disk.namespace",
    "JobResult": "engine",
    "KvshelfError": "errors",
    "NotAShelfError": "errors",
    "Pages": "engine",
    "Phase": "engine",
    "Settings": "config",
    "Shelf": "shelf",
    "make_key": "disk.keys",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


__all__ = [
    "Chunk",
    "ChunkFormatError",
    "ChunkKey",
    "ConfigError",
    "EngineClosedError",
    "EngineConfig",
    "FileStatus",
    "GroupMemory",
    "Identity",
    "JobResult",
    "KvshelfError",
    "NotAShelfError",
    "Pages",
    "Phase",
    "Settings",
    "Shelf",
    "make_key",
]
