"""The connector with vLLM's real configurations and KV caches, but without an engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (  # noqa: E402
    OffloadingConnectorMetadata,
    TransferJob,
)
from vllm.v1.kv_offload.base import GPULoadStoreSpec  # noqa: E402

from kvshelf import ConfigError, make_key  # noqa: E402
from kvshelf.vllm import compat, plugin  # noqa: E402
from kvshelf.vllm.adopt import adopt_config  # noqa: E402
from kvshelf.vllm.connector import KvshelfConnector  # noqa: E402
from kvshelf.vllm.report import KvshelfWorkerMetadata  # noqa: E402
from kvshelf.vllm.specs import ChunkKeysSpec  # noqa: E402

from .configs import kv_cache_config, vllm_config  # noqa: E402

PAGE_BYTES = 2 * 32 * 4 * 32 * 4  # K and V, 32 tokens, 4 heads of 32 float32
BLOCKS = 16


def config(tmp_path: Path, connector: str = "KvshelfConnector", **extra: Any) -> Any:
    shelf = tmp_path / "shelf"
    made = vllm_config(tmp_path / "tiny")
    made.kv_transfer_config.kv_connector = connector
    made.kv_transfer_config.kv_connector_extra_config = {
        "shared_storage_path": str(shelf),
        "block_size": 64,
        **extra,
    }
    return made


class Replica:
    """A worker's connector with KV caches of its own."""

    def __init__(self, tmp_path: Path, groups: int) -> None:
        cache = kv_cache_config(groups=groups)
        self.connector = KvshelfConnector(config(tmp_path), KVConnectorRole.WORKER, cache)
        self.caches = {
            name: torch.randn(BLOCKS, PAGE_BYTES // 4)
            for group in cache.kv_cache_groups
            for name in group.layer_names
        }
        self.connector.register_kv_caches(self.caches)
        self.job = 0

    def run(self, *, load: bool, keys: list[bytes], sizes: list[int], ids: list[int]) -> Any:
        """One job, as vLLM's steps would run it; the results of the step in which it ended."""
        self.job += 1
        blocks = GPULoadStoreSpec(ids, group_sizes=sizes, block_indices=[0] * len(sizes))
        spec = ChunkKeysSpec(keys)
        src, dst = (spec, blocks) if load else (blocks, spec)
        jobs = {self.job: TransferJob(req_id=f"r{self.job}", src_spec=src, dst_spec=dst)}
        meta = OffloadingConnectorMetadata(
            load_jobs=jobs if load else {}, store_jobs={} if load else jobs
        )
        empty = OffloadingConnectorMetadata(load_jobs={}, store_jobs={})
        report = None
        for step in range(2000):
            self.connector.bind_connector_metadata(empty if step else meta)
            self.connector.start_load_kv(None)
            self.connector.wait_for_save()
            results = self.connector.get_transfer_results(set())
            blocks_failed = self.connector.get_block_ids_with_load_errors()
            made = self.connector.build_connector_worker_meta()
            if made is not None:
                assert isinstance(made, KvshelfWorkerMetadata)
                report = made if report is None else report.aggregate(made)
                done = self.job in report.completed_jobs
                if done and (load or report.report.published or report.report.not_stored):
                    return SimpleNamespace(results=results, blocks=blocks_failed, report=report)
            time.sleep(0.002)
        raise AssertionError("the job did not end")


@pytest.fixture(params=[1, 2], ids=["one group", "two groups"])
def groups(request: pytest.FixtureRequest) -> int:
    if compat.TransferResults is None:
        pytest.skip("drives calls that vLLM has since 0.30")
    return int(request.param)


@pytest.fixture
def replicas(tmp_path: Path, groups: int) -> Iterator[tuple[Replica, Replica]]:
    pair = Replica(tmp_path, groups), Replica(tmp_path, groups)
    yield pair
    for replica in pair:
        replica.connector.shutdown()


def keys_of(groups: int) -> list[bytes]:
    return [make_key(bytes([i]) * 32, g) for g in range(groups) for i in range(2)]


def job_of(groups: int, ids: list[int]) -> dict[str, Any]:
    return {"keys": keys_of(groups), "sizes": [4] * groups, "ids": ids[: 4 * groups]}


FROM, TO = [1, 2, 3, 4, 5, 6, 7, 8], [15, 14, 13, 12, 11, 10, 9, 8]


def test_a_chunk_of_one_replica_is_loaded_by_the_other(
    replicas: tuple[Replica, Replica], groups: int
) -> None:
    one, two = replicas
    stored = one.run(load=False, **job_of(groups, FROM))
    assert set(stored.report.report.published) == set(keys_of(groups))
    loaded = two.run(load=True, **job_of(groups, TO))
    assert not loaded.blocks
    assert not loaded.results.failed_recving
    assert loaded.results.finished_recving == {"r1"}
    names = list(two.caches)
    for group in range(groups):
        for name in names[4 * group : 4 * group + 4]:
            target = two.caches[name][TO[4 * group : 4 * group + 4]]
            assert torch.equal(target, one.caches[name][FROM[4 * group : 4 * group + 4]])


def test_a_failed_load_is_reported_in_the_way_that_the_model_allows(
    replicas: tuple[Replica, Replica], groups: int, tmp_path: Path
) -> None:
    one, two = replicas
    one.run(load=False, **job_of(groups, FROM))
    bad = keys_of(groups)[1]
    (path,) = (tmp_path / "shelf").rglob(f"{bad[:-4].hex()}-g0.kv")
    path.write_bytes(bytes(9000))
    failed = two.run(load=True, **job_of(groups, TO))
    assert failed.results.finished_recving == {"r1"}
    assert failed.report.report.failed == {bad}
    if groups == 1:  # block ids name blocks
        assert failed.blocks == {13, 12}
        assert not failed.results.failed_recving
    else:  # they do not: the request as a whole
        assert not failed.blocks
        assert failed.results.failed_recving == {"r1"}


def test_the_scheduler_side_is_ours(tmp_path: Path) -> None:
    connector = KvshelfConnector(config(tmp_path), KVConnectorRole.SCHEDULER, kv_cache_config())
    assert type(connector.connector_scheduler.manager).__name__ == "KvshelfManager"
    connector.shutdown()


def test_little_has_to_be_written(tmp_path: Path) -> None:
    made = config(tmp_path)
    made.kv_transfer_config.kv_connector_extra_config = {"shared_storage_path": str(tmp_path)}
    assert adopt_config(made.kv_transfer_config)
    extra = made.kv_transfer_config.kv_connector_extra_config
    assert extra["spec_name"] == "SharedStorageOffloadingSpec"
    assert extra["block_size"] == 256
    assert made.kv_transfer_config.kv_load_failure_policy == "recompute"


def test_an_llmd_configuration_with_our_module_path_gets_our_connector(tmp_path: Path) -> None:
    plugin.register()
    made = config(
        tmp_path,
        "OffloadingConnector",
        spec_name="SharedStorageOffloadingSpec",
        spec_module_path="kvshelf.vllm.spec",
        threads_per_gpu="4",
        max_staging_memory_gb="1",
        read_preferring_ratio="0.75",
        max_write_queued_seconds="30",
    )
    connector = KVConnectorFactory.create_connector(made, KVConnectorRole.WORKER, kv_cache_config())
    assert isinstance(connector, KvshelfConnector)
    connector.shutdown()


def test_another_spec_under_vllms_name_is_left_alone(tmp_path: Path) -> None:
    made = config(tmp_path, "OffloadingConnector", spec_name="CPUOffloadingSpec")
    assert not adopt_config(made.kv_transfer_config)
    assert made.kv_transfer_config.kv_load_failure_policy == "fail"


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"spec_name": "TieringOffloadingSpec"}, "spec_name"),
        ({"shared_storage_pth": "/x"}, "shared_storage_pth"),
        ({"threads_per_gpu": "many"}, "threads_per_gpu"),
        ({"shared_storage_path": "relative/path"}, "shared_storage_path"),
        ({"direct": "sometimes"}, "direct"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_setting_is_one_error_at_start(
    tmp_path: Path, extra: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        KvshelfConnector(config(tmp_path, **extra), KVConnectorRole.WORKER, kv_cache_config())


def test_vllms_own_connector_is_refused(tmp_path: Path) -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import (
        OffloadingConnector,
    )

    made = config(
        tmp_path,
        "OffloadingConnector",
        spec_name="SharedStorageOffloadingSpec",
        spec_module_path="kvshelf.vllm.spec",
    )
    with pytest.raises(ConfigError, match="KvshelfConnector"):
        OffloadingConnector(made, KVConnectorRole.WORKER, kv_cache_config())
