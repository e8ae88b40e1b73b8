"""Seeded faults through SGLang's controller: whatever storage does, no page has wrong bytes.

    python -m tests.sglang.schedules RULES SHELF FIRST COUNT

Needs the library of faulty_calls.py preloaded. Each seed stores a prompt's pages, damages files,
and prefetches the prompt into other memory, while system calls fail. Prints one JSON line.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kvshelf.disk.keys import make_key
from tests.harness.faulty_calls import FaultyCalls, Rule
from tests.sglang.rig import (
    arguments,
    back_up,
    backend_of,
    config_of,
    controller_of,
    hashes,
    make_model,
    make_pool,
    page_bytes,
    prefetch,
)

PAGES = 12
LIMIT_SECONDS = 10.0  # of one call: its deadline is 1 s, the rest is a busy machine's
SETTINGS = {
    "evict": False,
    "breaker_faults": 1000,  # the storage is asked every time
    "load_timeout_seconds": 1,
    "load_stall_seconds": 0.5,
    "lookup_timeout_seconds": 0.5,
    "store_timeout_seconds": 1,
    "max_write_queued_seconds": 1,
    "threads_per_gpu": 4,
    "lookup_threads": 4,
    "close_timeout_seconds": 1,
}


def rules_of(chance: random.Random, operations: tuple[str, ...]) -> list[Rule]:
    """One to three faults; one seed in twenty has a call that hangs."""
    rules = []
    for _ in range(chance.randint(1, 3)):
        operation = chance.choice(operations)
        actions = ["error", "error after"]
        if operation in ("read", "write"):
            actions += ["short", "flip", "torn"] if operation == "write" else ["short", "flip"]
        if chance.random() < 0.05:
            actions = ["hang"]
        rules.append(
            Rule(
                operation,
                chance.choice(actions),
                error=chance.choice(["EIO", "ENOENT", "EINTR", "ESTALE", "EAGAIN", "ENOSPC"]),
                path="*.kv*",
                probability=chance.choice([0.05, 0.3, 1.0]),
                seed=chance.randrange(1 << 30),
                count=chance.choice([0, 1, 4]),
            )
        )
    return rules


def damage_files(files: list[Path], chance: random.Random) -> int:
    """Change some files behind everybody's back. Returns how many."""
    hit = chance.sample(files, min(len(files), chance.choice([0, 1, 1, 2, 5])))
    for file in hit:
        kind = chance.choice(["flip", "short", "swap", "remove", "empty", "header"])
        content = bytearray(file.read_bytes())
        if kind == "flip" and len(content) > 4096:
            content[4096 + chance.randrange(len(content) - 4096)] ^= 1 << chance.randrange(8)
        elif kind == "header" and content:
            content[chance.randrange(4096)] ^= 1 << chance.randrange(8)
        elif kind == "short" and content:
            del content[chance.randrange(len(content)) :]
        elif kind == "swap":
            content = bytearray(chance.choice([f for f in files if f.exists()]).read_bytes())
        elif kind == "empty":
            content.clear()
        if kind == "remove":
            file.unlink()
        else:
            file.write_bytes(content)
    return len(hit)


def one_seed(
    seed: int, controller: Any, faults: FaultyCalls, shelf: Path, pool: Any
) -> tuple[Counter[str], float]:
    """Store, damage, prefetch, compare; (what happened, seconds of the longest call)."""
    chance, told, longest = random.Random(seed), Counter[str](), 0.0
    keys = hashes(PAGES, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    pool.kv_buffer.copy_(torch.rand(pool.kv_buffer.shape, generator=generator))
    expected = [page_bytes(pool, page) for page in range(PAGES)]
    faults.set(*rules_of(chance, ("open", "write", "rename", "mkdir", "close", "read", "stat")))
    begun = time.monotonic()
    told["stored"] += back_up(controller, keys, list(range(PAGES)))
    longest = max(longest, time.monotonic() - begun)
    faults.set()
    chunks = controller.storage_backend._pools["kv"].shelf
    paths = [shelf / chunks.path_of(make_key(bytes.fromhex(key), 0)) for key in keys]
    there = [path for path in paths if path.exists()]
    told["damaged"] += damage_files(there, chance)

    pool.kv_buffer.zero_()
    faults.set(*rules_of(chance, ("open", "read", "stat", "fstat", "close", "unlink")))
    begun = time.monotonic()
    found = controller.storage_backend.batch_exists(keys)
    longest = max(longest, time.monotonic() - begun)
    begun = time.monotonic()
    loaded = prefetch(controller, keys, list(range(PAGES, 2 * PAGES)))
    longest = max(longest, time.monotonic() - begun)
    faults.set()
    told["found"] += found
    told["loaded"] += loaded
    told["wrong"] += sum(page_bytes(pool, PAGES + i) != expected[i] for i in range(loaded))
    for path in there:
        path.unlink(missing_ok=True)
    told["overwritten"] += sum(any(page_bytes(pool, page)) for page in range(PAGES))
    return told, longest


def main() -> None:
    rules, shelf, first, count = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
    logging.disable(logging.WARNING)  # one line a failed page, by SGLang
    faults = FaultyCalls(rules, shelf)
    faults.attach()
    pool, server_args = make_pool(), arguments(make_model(shelf.parent / "tiny"))
    told, longest = Counter[str](), 0.0
    # Odd runs with several pages a chunk.
    extra = {**SETTINGS, "pages_per_chunk": 4 if first % 2 else 1}
    with backend_of(shelf, pool, server_args, config_of(shelf, extra=extra)) as backend:
        controller = controller_of(pool, backend)
        for seed in range(first, first + count):
            more, seconds = one_seed(seed, controller, faults, shelf, pool)
            told += more
            longest = max(longest, seconds)
            if more["wrong"] or more["overwritten"]:
                sys.stderr.write(f"seed {seed}: wrong bytes\n")
        faults.set()
    answer = SimpleNamespace(seeds=count, longest_seconds=round(longest, 2), **told)
    sys.stdout.write(json.dumps({"wrong": 0, "overwritten": 0, **vars(answer)}) + "\n")


if __name__ == "__main__":
    main()
