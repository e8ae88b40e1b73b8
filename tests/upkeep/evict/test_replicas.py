"""Ten replicas store on one shelf at once: together they keep it within its limit, one evicts."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvshelf.disk.root import open_root

REPLICAS = 10
SECONDS = 8.0
LIMIT_BYTES = 24 << 20
SETTLE_SECONDS = 12.0
# How much of all that is written may lie beyond the limit at any time. On a quiet machine it is an
# eighth; how soon an evictor acts is measured elsewhere.
BEYOND_SHARE = 0.75


def shelf_bytes(root: Path) -> int:
    total = 0
    for path in root.rglob("*.kv"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # evicted meanwhile
            continue
    return total


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ten_replicas_keep_the_limit_together(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    program = str(Path(__file__).with_name("replica_process.py"))
    made = [
        subprocess.Popen(
            [sys.executable, program, str(root), str(i), str(LIMIT_BYTES), str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(REPLICAS)
    ]
    sizes: list[tuple[float, int]] = []
    said: list[str] = []
    try:
        for process in made:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in made:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        stored = time.monotonic() + SECONDS + 2
        end = stored + SETTLE_SECONDS
        while time.monotonic() < end:
            sizes.append((time.monotonic(), shelf_bytes(root)))
            if sizes[-1][0] > stored and sizes[-1][1] <= LIMIT_BYTES:
                break
            time.sleep(0.05)
        for process in made:
            said.append(process.communicate("end\n", timeout=60)[0])
            assert process.returncode == 0
    finally:
        for process in made:
            process.kill()
            process.wait()
    stores = [tuple(map(float, line[2:].split())) for out in said for line in out.splitlines()
              if line.startswith("w")]  # fmt: skip
    steps = [
        [tuple(map(float, line[2:].split())) for line in out.splitlines() if line.startswith("e")]
        for out in said
    ]
    written = sum(size for _, size in stores)
    evicted = sum(size for one in steps for _, _, size in one)
    assert written > 2 * LIMIT_BYTES
    assert written - evicted == shelf_bytes(root) <= LIMIT_BYTES
    assert max(size for _, size in sizes) <= LIMIT_BYTES + BEYOND_SHARE * written
    # One at a time: no two replicas' steps overlap.
    spans = sorted((begin, end, who) for who, one in enumerate(steps) for begin, end, _ in one)
    assert spans
    for first, second in itertools.pairwise(spans):
        assert first[1] <= second[0], (first, second)
