"""kvshelf: vLLM's KV cache on a shared file system.

Start with ``Shelf``; ``kvshelf.vllm`` is the plugin for vLLM and is never imported from here.
"""

from kvshelf.config import Settings
from kvshelf.engine import EngineConfig, FileStatus, GroupMemory, JobResult, Pages, Phase
from kvshelf.errors import (
    ChunkFormatError,
    ConfigError,
    EngineClosedError,
    KvshelfError,
    NotAShelfError,
)
from kvshelf.keys import ChunkKey, make_key
from kvshelf.namespace import Identity
from kvshelf.shelf import Chunk, Shelf

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
