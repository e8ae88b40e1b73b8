"""A small chunk stored and loaded through a shelf, as an engine will do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from kvshelf.config import Settings
from kvshelf.disk.keys import make_key
from kvshelf.disk.namespace import Identity
from kvshelf.doctor.findings import Finding, fine, problem
from kvshelf.doctor.semantics import remedy_of, text_of
from kvshelf.engine import EngineConfig, FileStatus, Phase
from kvshelf.engine.probe import Outcome
from kvshelf.errors import KvshelfError
from kvshelf.shelf import Chunk, Shelf

_CHECK = "store and load"
_BLOCKS, _BLOCK_BYTES = 4, 16 << 10
_SECONDS = 30.0


def check_trial(folder: Path, settings: Settings | None = None) -> Finding:
    """Store and load a chunk of 64 KiB in a scratch folder, with these settings.

    Raises:
        OSError: the folder cannot be opened.
    """
    try:
        config = dataclasses.replace(
            EngineConfig.from_settings(settings or Settings()),
            io_threads=1,
            load_only_threads=0,
            lookup_threads=1,
            write_buffer_bytes=8 << 20,
        )
        memory = np.zeros((2 * _BLOCKS, _BLOCK_BYTES), np.uint8)
        memory[:_BLOCKS] = np.arange(_BLOCK_BYTES, dtype=np.uint32) % 251
        identity = Identity({"model": "doctor"})
        with Shelf.of_arrays(folder, identity, memory, config=config) as shelf:
            key = make_key(b"a chunk of the doctor", 0)
            stored = _run(shelf, Chunk(key, range(_BLOCKS)), is_store=True)
            if not stored.ok:
                return _failed("stored", stored)
            loaded = _run(shelf, Chunk(key, range(_BLOCKS, 2 * _BLOCKS)), is_store=False)
            if not loaded.ok:
                return _failed("loaded", loaded)
    except (KvshelfError, ValueError) as error:
        return problem(_CHECK, f"no shelf can be opened: {error}", "change the settings")
    except (MemoryError, RuntimeError) as error:
        reason = str(error) or "no memory"
        return problem(_CHECK, f"no engine can be started: {reason}", "see this process's limits")
    if not np.array_equal(memory[:_BLOCKS], memory[_BLOCKS:]):
        return problem(_CHECK, "other bytes were loaded than stored", "do not use this mount")
    return fine(_CHECK, "a chunk was stored, loaded and compared")


def _run(shelf: Shelf, chunk: Chunk, *, is_store: bool) -> Outcome:
    submit = shelf.submit_store if is_store else shelf.submit_load
    job = 1 if is_store else 2
    submit(job, [chunk])
    shelf.wait([job], Phase.FINISHED, _SECONDS)
    for report in shelf.poll():
        if report.job_id == job and report.phase is Phase.FINISHED:
            return Outcome(report.statuses[0], report.errnos[0])
    return Outcome(FileStatus.TIMED_OUT, 0)


def _failed(step: str, outcome: Outcome) -> Finding:
    return problem(_CHECK, f"a chunk cannot be {step}: {text_of(outcome)}", remedy_of(outcome))
