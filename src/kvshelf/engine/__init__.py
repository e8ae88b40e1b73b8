"""Engines: move bytes between block memory and chunk files. Nothing here knows keys or vLLM."""

from kvshelf.engine.base import (
    Batch,
    BatchBuilder,
    CopyMethod,
    Direct,
    Durability,
    Engine,
    EngineConfig,
    EngineStats,
    FileStatus,
    GroupMemory,
    JobId,
    JobKind,
    JobResult,
    Pages,
    Phase,
)

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
