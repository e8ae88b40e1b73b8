"""For tests of engines and of what stands on them; imports pytest and anycrc."""

from kvshelf.testing.engines import EngineTests
from kvshelf.testing.faulty import FaultyEngine
from kvshelf.testing.files import FileEngineTests
from kvshelf.testing.memory import Blocks, Setup
from kvshelf.testing.memory_engine import MemoryEngine

__all__ = ["Blocks", "EngineTests", "FaultyEngine", "FileEngineTests", "MemoryEngine", "Setup"]
