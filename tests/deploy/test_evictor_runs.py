"""The container of the evictor's chart, started on a full volume, as its security context says."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from demo.damage import chunk_files

from kvshelf import Chunk, Identity, Shelf, make_key
from kvshelf.cli.main import COMMANDS, main
from tests.deploy import expressions
from tests.deploy.prometheus import Prometheus
from tests.deploy.render import DEPLOY, kustomize
from tests.deploy.running import Pod, why_not
from tests.deploy.test_chart import DEFAULTS, template

pytestmark = pytest.mark.skipif("evict" not in COMMANDS, reason="this kvshelf has no evict command")

CLAIM = "llm-d-kv-cache-storage"
VOLUME_MIB = 64
CHUNKS = 61  # of 1 MiB and a page each


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with a shelf that fills it to more than nine tenths."""
    if reason := why_not():
        pytest.skip(reason)
    path = tmp_path / "volume"
    path.mkdir()
    size = f"size={VOLUME_MIB}m,mode=2775,gid=1000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", path], check=True)
    try:
        fill(path / "kv-cache")
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(root: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 255, (1, 1 << 20), dtype=np.uint8)
    with Shelf.of_arrays(root, Identity({"model": "full"}), blocks) as shelf:
        for number in range(CHUNKS):
            shelf.store([Chunk(make_key(number.to_bytes(32, "big"), 0), range(1))])
    for entry in (root, *root.rglob("*")):  # the replicas' user stored them
        shutil.chown(entry, 1000, 1000)


def used(path: Path) -> float:
    space = os.statvfs(path)
    return 1 - space.f_bavail / space.f_blocks


@pytest.mark.slow
def test_the_charts_container_brings_a_full_volume_below_its_limit(
    volume: Path, tmp_path: Path
) -> None:
    assert used(volume) > 0.9
    before = len(chunk_files(volume / "kv-cache"))
    objects = [*template(DEFAULTS, tmp_path), *kustomize(DEPLOY / "base/storage")]
    pod = Pod(objects, "kv-evictor", tmp_path / "pod", {CLAIM: volume})
    try:
        pod.launch().ready(60)
        wait_for(lambda: used(volume) <= 0.9 and pod.metric("kvshelf:evicted_chunks_total"), pod)
        left = len(chunk_files(volume / "kv-cache"))
        assert before - left == pod.metric("kvshelf:evicted_chunks_total")
        assert used(volume) > 0.8  # to its low mark, and no further
        capacity_is_shown(pod, tmp_path / "prometheus")
        assert pod.terminate() == 0
    finally:
        pod.close()


@pytest.mark.slow
def test_an_evictor_that_is_killed_leaves_its_work_to_the_next(
    volume: Path, tmp_path: Path
) -> None:
    """Killed in the midst of an eviction, as by the kernel: the next pod takes the lease, and no
    chunk is half."""
    slow = {**DEFAULTS, "rate": 4}  # files a second: it is still at work when it is killed
    objects = [*template(slow, tmp_path), *kustomize(DEPLOY / "base/storage")]
    first = Pod(objects, "kv-evictor", tmp_path / "first", {CLAIM: volume})
    before = len(chunk_files(volume / "kv-cache"))
    try:
        first.launch().ready(60)
        wait_for(lambda: len(chunk_files(volume / "kv-cache")) < before, first)
        first.kill()
    finally:
        first.close()
    assert used(volume) > 0.9
    objects = [*template(DEFAULTS, tmp_path), *kustomize(DEPLOY / "base/storage")]
    second = Pod(objects, "kv-evictor", tmp_path / "second", {CLAIM: volume})
    try:
        second.launch().ready(60)
        wait_for(lambda: used(volume) <= 0.9, second)
        assert second.metric("kvshelf:evict_lease_held") == 1
        assert second.terminate() == 0
    finally:
        second.close()
    left = chunk_files(volume / "kv-cache")
    assert 40 < len(left) < before
    assert len({path.stat().st_size for path in left}) == 1
    assert main(["scrub", str(volume / "kv-cache")]) == 0


def wait_for(condition: Callable[[], object], pod: Pod, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, pod.log_tail()
        time.sleep(0.05)


def capacity_is_shown(pod: Pod, folder: Path) -> None:
    """With the chart as the lease's holder, its panels and both alerts of eviction have data."""
    monitoring = kustomize(expressions.FOLDER)
    alerts = {rule.where: rule for kind, rule in expressions.rules() if kind == "alert"}
    wanted = [
        expressions.without_threshold(alerts[name]).text
        for name in ("KvshelfEvictionStuck", "KvshelfStaleLease")
    ]
    wanted += [each.text for each in expressions.panels("Capacity") if "or vector" not in each.text]
    assert len(wanted) >= 9
    with Prometheus(folder, monitoring, [f"127.0.0.1:{pod.port}"]) as prometheus:
        assert prometheus.await_data(wanted, 60) == []
        assert [one["value"][1] for one in prometheus.query(wanted[1])] == ["1"]  # it holds it
