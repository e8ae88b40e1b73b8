"""Uses a shelf as engines, evictors, scrubs and doctors do, and prints what came of it as JSON.

    python -m tests.harness.shelf_work ROOT [DURABILITY]

A program of its own, so that a test can run it where calls are refused or /proc is hidden.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvshelf.cli.main import main as kvshelf
from kvshelf.disk.keys import make_key
from kvshelf.disk.namespace import Identity
from kvshelf.engine import Durability, EngineConfig
from kvshelf.shelf import Chunk, Shelf

CHUNKS, BLOCK_BYTES = 6, 40_000
IDENTITY = Identity({"model": "work"})


def store_and_load(root: Path, durability: str) -> dict[str, Any]:
    """Statuses by name, and whether what was loaded is what was stored."""
    memory = np.zeros((2 * CHUNKS, BLOCK_BYTES), np.uint8)
    memory[:CHUNKS] = np.random.default_rng(1).integers(0, 255, (CHUNKS, BLOCK_BYTES), np.uint8)
    config = EngineConfig(durability=Durability(durability), io_threads=2, lookup_threads=2)
    keys = [make_key(bytes([i]) * 16, 0) for i in range(CHUNKS)]
    with Shelf.of_arrays(root, IDENTITY, memory, config=config) as shelf:
        stored = shelf.store([Chunk(key, [i]) for i, key in enumerate(keys)])
        again = shelf.store([Chunk(key, [i]) for i, key in enumerate(keys)])
        found = shelf.lookup(keys)
        loaded = shelf.load([Chunk(key, [CHUNKS + i]) for i, key in enumerate(keys)])
        shelf.touch(keys)
        shelf.drain(10)
    return {
        "stored": sorted({status.name for status in stored}),
        "again": sorted({status.name for status in again}),
        "found": sorted({status.name for status in found}),
        "loaded": sorted({status.name for status in loaded}),
        "same": bool(np.array_equal(memory[:CHUNKS], memory[CHUNKS:])),
    }


def command(*arguments: str) -> tuple[int, list[Any]]:
    """Exit status of a kvshelf command, and the JSON values that it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = kvshelf([*arguments, "--json"])
    return status, _values(out.getvalue())


def _values(text: str) -> list[Any]:
    values, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


def doctor(root: Path) -> dict[str, Any]:
    _, [report] = command("doctor", str(root), "--quick")
    return {
        finding["check"]: [finding["severity"], finding["message"]]
        for finding in report["findings"]
        if finding["severity"] != "note"
    }


def scrub(root: Path) -> dict[str, Any]:
    status, values = command("scrub", str(root), "--from-start")
    return {"status": status, "values": values}


def evict(root: Path) -> dict[str, Any]:
    status, _ = command("evict", str(root), "--once", "--shelf-limit", str(3 * BLOCK_BYTES))
    return {"status": status, "left": len(list(root.rglob("*.kv")))}


def work(root: Path, durability: str) -> dict[str, Any]:
    steps: dict[str, Callable[[], Any]] = {
        "engine": lambda: store_and_load(root, durability),
        "doctor": lambda: doctor(root),
        "scrub": lambda: scrub(root),
        "evict": lambda: evict(root),
    }
    report: dict[str, Any] = {}
    for name, step in steps.items():
        try:
            report[name] = step()
        except Exception:
            report[name] = traceback.format_exc()
    return report


if __name__ == "__main__":
    json.dump(work(Path(sys.argv[1]), *(sys.argv[2:] or ["none"])), sys.stdout)
