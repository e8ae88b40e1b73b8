"""Engines: move bytes between block memory and chunk files. Nothing here knows keys or vLLM."""

from kvshelf.engine.base import (
    Batch,
    BatchBuilder,
    Engine,
    EngineStats,
    FileStatus,
    GroupMemory,
    JobId,
    JobKind,
    JobResult,
    Pages,
    Phase,
)
from kvshelf.engine.config import CopyMethod, Direct, Durability, EngineConfig

__all__ = [
    "Batch",
    "BatchBuilder",
    "CopyMethod",
    "Direct",
    "Durability",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "FileStatus",
    "GroupMemory",
    "JobId",
    "JobKind",
    "JobResult",
    "Pages",
    "Phase",
]
