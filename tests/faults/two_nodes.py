"""Two engines on two mounts of one shared file system, as two nodes have them.

    python tests/faults/two_nodes.py A B [--nfs-server]

With --nfs-server, B's server is stopped and started again; that runs in a guest which is the server
(test_nfs.py). Prints one line a step and ends with "all well", or fails.
"""

from __future__ import annotations

import collections
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvshelf import Chunk, EngineConfig, FileStatus, Identity, make_key
from kvshelf.engine import Phase
from kvshelf.shelf import Shelf
from kvshelf.upkeep.evict.lease import open_lease

BLOCKS, BLOCK_BYTES, CHUNKS = 64, 65536, 16
LEASE_SECONDS = 3.0
PER_CHUNK = BLOCKS // CHUNKS
ROUNDS = 12
CONFIG = EngineConfig(
    io_threads=4,
    load_only_threads=1,
    lookup_threads=8,
    load_stall_seconds=2.0,
    lookup_timeout_seconds=2.0,
)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Node:
    def __init__(self, mount: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.blocks = rng.integers(0, 255, (BLOCKS, BLOCK_BYTES), dtype=np.uint8)
        root = Path(mount) / "shelf"
        self.shelf = Shelf.of_arrays(root, Identity({"model": "m"}), self.blocks, config=CONFIG)
        self._jobs = 0

    def chunks(self, salt: int) -> list[Chunk]:
        return [
            Chunk(
                make_key((1000 * salt + i).to_bytes(32, "big"), 0),
                range(PER_CHUNK * i, PER_CHUNK * (i + 1)),
            )
            for i in range(CHUNKS)
        ]

    def run(self, kind: str, salt: int, seconds: float = 30.0) -> list[FileStatus]:
        self._jobs += 1
        chunks = self.chunks(salt)
        if kind == "lookup":
            self.shelf.submit_lookup(self._jobs, [chunk.key for chunk in chunks])
        else:
            getattr(self.shelf, f"submit_{kind}")(self._jobs, chunks)
        assert self.shelf.wait([self._jobs], Phase.FINISHED, seconds), f"{kind} did not end"
        reports = [r for r in self.shelf.poll() if r.phase is Phase.FINISHED]
        return list(reports[-1].statuses)


def all_ok(statuses: list[FileStatus]) -> bool:
    return all(status is FileStatus.OK for status in statuses)


def sharing(one: Node, two: Node) -> None:
    assert all_ok(one.run("store", 1))
    assert all_ok(two.run("lookup", 1))
    assert all_ok(two.run("load", 1))
    assert np.array_equal(one.blocks, two.blocks)
    say("shared: what one mount stored the other loads, byte for byte")


def both_at_once(one: Node, two: Node) -> None:
    """Both store the same chunks: neither fails, and what is there is one of the two."""
    threads = [threading.Thread(target=node.run, args=("store", 2)) for node in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = one.blocks.copy()
    assert all_ok(one.run("load", 2)) and np.array_equal(one.blocks, kept)
    say("stored by both at once")


def removed_while_loading(one: Node, two: Node) -> None:
    """An evictor on the other node: a chunk is loaded right or it is a miss, and the next store
    brings it back."""
    right = one.blocks.copy()
    seen: collections.Counter[str] = collections.Counter()

    def remove(delay_seconds: float) -> None:
        time.sleep(delay_seconds)
        for chunk in one.chunks(3):
            (Path(one.shelf._root) / one.shelf.path_of(chunk.key)).unlink(missing_ok=True)

    for attempt in range(ROUNDS):
        one.blocks[:] = right
        assert all_ok(one.run("store", 3))
        two.run("lookup", 3)
        thread = threading.Thread(target=remove, args=(0.002 * attempt,))
        thread.start()
        two.blocks[:] = 0
        statuses = two.run("load", 3)
        thread.join()
        seen.update(status.name for status in statuses)
        for i, status in enumerate(statuses):
            rows = slice(PER_CHUNK * i, PER_CHUNK * (i + 1))
            if status is FileStatus.OK:
                assert np.array_equal(two.blocks[rows], right[rows])
    say(f"removed while loading, {ROUNDS} times: {dict(seen)}")


def one_lease(mounts: Sequence[str]) -> None:
    """Of two nodes one may evict, and the other follows it when it is gone."""
    first, second = (open_lease(Path(m) / "shelf", lease_seconds=LEASE_SECONDS) for m in mounts)
    deadline = time.monotonic() + 120
    while not first.tick():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    until = time.monotonic() + 3 * LEASE_SECONDS
    while time.monotonic() < until:
        assert first.tick() and not second.tick()
        time.sleep(0.05)
    gone = time.monotonic()
    while not second.tick():
        assert not first.is_held or time.monotonic() < gone + LEASE_SECONDS
        assert time.monotonic() < deadline
        time.sleep(0.05)
    seconds = time.monotonic() - gone
    assert not first.is_held and not first.tick() and first.lost == 1
    second.release()
    left = time.monotonic()
    while not first.tick():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    say(
        f"lease of {LEASE_SECONDS} s: taken over after {seconds:.1f} s, "
        f"when left after {time.monotonic() - left:.1f} s"
    )


def server_stops(two: Node) -> None:
    """A hard mount gives no error: deadlines must, and work goes on when the server is back."""
    subprocess.run(["rpc.nfsd", "0"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    start = time.monotonic()
    loaded = two.run("load", 1)
    looked = two.run("lookup", 77)
    seconds = time.monotonic() - start
    assert seconds < 20, seconds
    assert not all_ok(loaded) and FileStatus.TIMED_OUT in looked, (loaded, looked)
    hung = two.shelf.stats().hung_threads
    subprocess.run(["rpc.nfsd", "4"], check=True)
    start = time.monotonic()
    deadline = start + 90
    while not all_ok(two.run("load", 1)):
        assert time.monotonic() < deadline, "loads did not come back"
        time.sleep(0.5)
    say(
        f"server stopped: given up after {seconds:.1f} s, {hung} threads hung, "
        f"back {time.monotonic() - start:.1f} s after the server",
    )


def main() -> None:
    one, two = Node(sys.argv[1], 1), Node(sys.argv[2], 2)
    sharing(one, two)
    both_at_once(one, two)
    one_lease(sys.argv[1:3])
    if "--nfs-server" in sys.argv:
        server_stops(two)
    removed_while_loading(one, two)
    assert one.shelf.close() and two.shelf.close()
    say("all well")


if __name__ == "__main__":
    main()
