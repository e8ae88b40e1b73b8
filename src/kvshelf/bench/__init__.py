"""Measures a directory as kvshelf uses it, beside plain system calls on the same files.

A library: it returns rows, ``kvshelf bench`` and ``kvshelf doctor`` print them. Nothing here knows
vLLM or torch; block memory is host memory.
"""

from kvshelf.bench.measure import Row, Workload, measure
from kvshelf.bench.room import shortage
from kvshelf.bench.scratch import Scratch

__all__ = ["Row", "Scratch", "Workload", "measure", "shortage"]
