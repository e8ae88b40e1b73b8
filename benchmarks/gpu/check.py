"""Every byte, on a real card: fresh random data, odd sizes, unaligned starts, many groups.

    python benchmarks/gpu/check.py DIR [--rounds 30] [--device cuda:0]

Exit 0 only if all that was loaded equals what was stored and nothing else in memory changed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvshelf import Chunk, EngineConfig, FileStatus, GroupMemory, Identity, Pages, Shelf, make_key
from kvshelf.engine import CopyMethod, Phase


def make_groups(rng: random.Random, device: str) -> tuple[list[list[Any]], list[GroupMemory]]:
    """Up to five groups of up to nine layers whose pages have odd sizes and gaps between them."""
    tensors, memories = [], []
    for _ in range(rng.randint(1, 5)):
        blocks = rng.randint(40, 80)
        layers, pages = [], []
        for _ in range(rng.randint(1, 9)):
            size = rng.choice([1, 13, 512, 1000, 4096, 18_432, 65_536, rng.randint(1, 70_000)])
            tensor = torch.randint(
                0, 256, (blocks, size + rng.choice([0, 1, 64])), dtype=torch.uint8, device=device
            )
            layers.append((tensor, size))
            pages.append(Pages(tensor.data_ptr(), tensor.stride(0), size))
        tensors.append(layers)
        memories.append(GroupMemory(tuple(pages), blocks))
    return tensors, memories


def one_round(directory: Path, number: int, device: str) -> int:
    """Bytes verified in one round."""
    rng = random.Random(number)
    tensors, memories = make_groups(rng, device)
    config = EngineConfig(
        io_threads=rng.choice([1, 3, 12]),
        load_only_threads=0,
        piece_bytes=rng.choice([4096, 65_536, 1 << 20, 4 << 20]),
        step_bytes=rng.choice([4096, 65_536, 256 << 10]),
        write_buffer_bytes=rng.choice([8 << 20, 64 << 20]),
        write_behind=rng.random() < 0.8,
        copy_method=rng.choice(list(CopyMethod)),
    )
    verified = 0
    identity = Identity({"model": f"round-{number}-{time.time_ns()}"})
    with Shelf(directory, identity, groups=memories, config=config, device=device) as shelf:
        per_chunk, chunks, sources = 8, [], []
        for group, memory in enumerate(memories):
            ids = list(range(memory.num_blocks))
            rng.shuffle(ids)
            for index in range(rng.randint(1, 2)):
                mine = np.array(ids[index * per_chunk : (index + 1) * per_chunk], dtype=np.int32)
                chunks.append(Chunk(make_key(rng.randbytes(32), group), mine, 0))
                sources.append((group, mine, ids[20:]))
        stream = int(torch.cuda.current_stream().cuda_stream) if device != "cpu" else 0
        shelf.submit_store(1, chunks, stream)
        assert shelf.wait([1], Phase.FINISHED, 60)
        assert all(s is FileStatus.OK for s in shelf.poll()[-1].statuses)
        loads, wanted, used = [], [], set()
        for chunk, (group, mine, free) in zip(chunks, sources, strict=True):
            first = rng.randint(0, per_chunk - 1)
            count = rng.randint(1, per_chunk - first)
            target = [block for block in free if (group, block) not in used][:count]
            used.update((group, block) for block in target)
            loads.append(Chunk(chunk.key, np.array(target, dtype=np.int32), first))
            wanted.append((group, mine[first : first + count], target))
        expected = [[tensor.clone() for tensor, _ in layers] for layers in tensors]
        for group, source, target in wanted:
            for layer, (_, size) in enumerate(tensors[group]):
                copy = expected[group][layer]
                copy[target, :size] = copy[source.tolist(), :size]
                verified += len(target) * size
        shelf.submit_load(2, loads, stream)
        assert shelf.wait([2], Phase.FINISHED, 60)
        assert all(s is FileStatus.OK for s in shelf.poll()[-1].statuses)
        for layers, copies in zip(tensors, expected, strict=True):
            for (tensor, _), copy in zip(layers, copies, strict=True):
                assert torch.equal(tensor, copy), f"round {number}: bytes differ"
    return verified


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args()
    total = sum(one_round(args.directory.resolve(), n, args.device) for n in range(args.rounds))
    print(f"{args.rounds} rounds, {total:,} bytes verified on {args.device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
