"""The conformance suite for engines, and an engine in memory that passes it; imports pytest."""

from kvshelf.testing.engines import EngineTests
from kvshelf.testing.memory import Blocks, Setup
from kvshelf.testing.memory_engine import MemoryEngine

__all__ = ["Blocks", "EngineTests", "MemoryEngine", "Setup"]
