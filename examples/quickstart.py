"""Store a chunk of NumPy memory, find it, load it into other blocks (docs/reference/python.md)."""

import numpy as np
from kvshelf import Chunk, Identity, Shelf, make_key

blocks = np.random.default_rng(0).random((64, 4096))  # block memory: 64 blocks of 32 KiB
identity = Identity({"model": "demo", "dtype": "float64"})  # all that decides the bytes
key = make_key(b"hash of a prefix".ljust(32), 0)
with Shelf.of_arrays("/tmp/shelf", identity, blocks) as shelf:
    print(shelf.store([Chunk(key, range(0, 8))]))  # blocks 0 to 7 become one chunk file
    print(shelf.lookup([key]))
    print(shelf.load([Chunk(key, range(8, 16))]))  # verified, into blocks 8 to 15
print((blocks[0:8] == blocks[8:16]).all())
