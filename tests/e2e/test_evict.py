"""A real engine on a shelf so small that chunks are evicted while it serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from demo.damage import chunk_files

from tests.e2e.servers import free_port
from tests.harness.engines import (
    CHUNK_TOKENS,
    LOGPROB_TOLERANCE,
    Answer,
    EngineProcess,
    engine_arguments,
    make_prompt,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CHUNKS = 6  # of each prompt; see conftest.py
LIMIT_CHUNKS = 14  # two prompts and a bit


class Events(threading.Thread):
    """What the engine publishes about storage, as a router hears it."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        import zmq

        self.stored: list[Any] = []
        self.removed: list[Any] = []
        self._ended = threading.Event()
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.bind(endpoint)  # vLLM connects to an endpoint without a star

    def run(self) -> None:
        import msgspec
        from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVEventBatch

        decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
        while not self._ended.is_set():
            if not self._socket.poll(100):
                continue
            *_, payload = self._socket.recv_multipart()
            for event in decoder.decode(payload).events:
                if getattr(event, "medium", "") != "STORAGE":
                    continue  # of the engine's own cache
                if isinstance(event, BlockStored):
                    self.stored += event.block_hashes
                elif isinstance(event, BlockRemoved):
                    self.removed += event.block_hashes

    def close(self) -> None:
        self._ended.set()
        self.join(10)
        self._socket.close(0)


def until(is_so: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def shelf_bytes(shelf: Path) -> int:
    total = 0
    for path in chunk_files(shelf):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # evicted meanwhile
            continue
    return total


def test_an_engine_serves_while_its_shelf_is_kept_small(
    tiny_model: Path, tmp_path: Path, prompts: list[list[int]], truth: list[Answer]
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    # 128 tokens of 4 layers, 4 heads of 32 numbers, keys and values, 4 bytes each; and a header.
    file_bytes = CHUNK_TOKENS * 4 * 4 * 32 * 2 * 4 + 4096
    limit_bytes = LIMIT_CHUNKS * file_bytes
    arguments = engine_arguments(tiny_model, shelf, evict_shelf_gb=limit_bytes / 1e9)
    arguments["kv_events_config"] = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": endpoint,
    }
    others = [make_prompt(seed, CHUNKS * CHUNK_TOKENS + 1) for seed in range(500, 504)]
    events = Events(endpoint)
    events.start()
    with EngineProcess("evicts", arguments, tmp_path / "engine.log") as engine:
        for turn in range(2):
            engine.generate(others[2 * turn : 2 * turn + 2])
            for prompt, true in zip(prompts, truth, strict=True):
                for _ in range(2):  # the second time from the shelf, if it is there still
                    (answer,) = engine.generate([prompt])
                    assert answer.difference(true) <= LOGPROB_TOLERANCE
                    engine.reset_prefix_cache()
        until(lambda: shelf_bytes(shelf) <= limit_bytes)

        def series(name: str) -> float:
            engine.generate([others[-1][:8]])  # news travels with a step
            found = engine.metrics()
            return sum(v for k, v in found.items() if k.split("{")[0] == name)

        until(lambda: series("kvshelf:shelf_bytes") <= limit_bytes)
        assert series("kvshelf:evict_lease_held") == 1
        assert series("kvshelf:load_chunks_total") > 0
        evicted = series("kvshelf:evicted_chunks_total")
        assert evicted > LIMIT_CHUNKS
        assert series("kvshelf:evicted_bytes_total") == evicted * file_bytes
        assert series("kvshelf:evict_faults_total") == 0
        until(lambda: series("kvshelf:gone_keys_total") == evicted)
        left = {path.name.split("-")[0] for path in chunk_files(shelf)}
        until(lambda: len(set(events.removed) - set(events.stored)) == 0 and events.removed)
        until(lambda: len(events.stored) - len(events.removed) == len(left))
        assert engine.stop()
    events.close()
    # Each chunk was said to be stored and to be gone in turn; what is left was not said to be gone.
    assert len(events.removed) >= evicted
    assert set(events.removed) <= set(events.stored)
