"""Check the adapter against the vLLM that is first on sys.path; prints one line and exits 0 or 1.

Run by test_window.py in a process of its own, with the Python files of the oldest or the newest
supported vLLM in front. Native parts of vLLM are absent there, so no engine is started: abstract
classes, signatures, metadata and the differences listed in kvshelf.vllm.compat are checked.
"""

from __future__ import annotations

import inspect
import os
import sys
from types import SimpleNamespace
from typing import Any


def main() -> int:
    import vllm
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import (
        OffloadingConnector,
    )
    from vllm.v1.kv_offload.base import OffloadingManager, OffloadingSpec, OffloadingWorker
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory
    from vllm.v1.kv_offload.tiering.base import SecondaryTierManager

    from kvshelf.vllm import compat, multi, patches, plugin
    from kvshelf.vllm.connector import KvshelfConnector
    from kvshelf.vllm.scheduler.manager import KvshelfManager
    from kvshelf.vllm.spec import SharedStorageOffloadingSpec
    from kvshelf.vllm.tier import KvshelfTier
    from kvshelf.vllm.worker.worker import KvshelfWorker

    plugin.register()
    plugin.register()  # vLLM loads plugins more than once
    assert KVConnectorFactory.get_connector_class_by_name("KvshelfConnector") is KvshelfConnector
    spec_cls = OffloadingSpecFactory.get_spec_cls({"spec_name": "SharedStorageOffloadingSpec"})
    assert spec_cls is SharedStorageOffloadingSpec
    pairs = (
        (KvshelfManager, OffloadingManager),
        (KvshelfWorker, OffloadingWorker),
        (SharedStorageOffloadingSpec, OffloadingSpec),
        (KvshelfConnector, OffloadingConnector),
        (KvshelfTier, SecondaryTierManager),
        (multi.KvshelfMultiConnector, multi.MultiConnector),
    )
    for ours, theirs in pairs:
        check_class(ours, theirs)
    check_compat(compat, patches)
    check_stats()
    check_multi(multi)
    sys.stdout.write(f"fits vLLM {vllm.__version__}\n")
    return 0


def check_class(ours: type[Any], theirs: type[Any]) -> None:
    """No abstract method is left, and each override accepts what vLLM passes."""
    assert not getattr(ours, "__abstractmethods__", None), (ours, ours.__abstractmethods__)
    for name, method in vars(ours).items():
        base = getattr(theirs, name, None)
        if name.startswith("_") or base is None or not inspect.isfunction(method):
            continue
        wanted = inspect.signature(base).parameters
        given = inspect.signature(method).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in given.values())
        missing = [p for p in wanted if p not in given and not takes_any]
        assert not missing, f"{ours.__name__}.{name} lacks {missing}"


def check_compat(compat: Any, patches: Any) -> None:
    from vllm.v1.kv_offload.base import OffloadingEvent

    assert compat.REQUEST_LEVEL.value == "request_level"
    event = compat.event([b"k"], is_evicted=False)
    assert isinstance(event, OffloadingEvent)
    assert not event.removed
    os.environ.pop("PYTHONHASHSEED", None)
    expected = compat.hash_seed("sha256")
    for _ in range(2):
        patches.fix_hash_seed("sha256")
        assert compat.hash_seed("sha256") == expected
    # What vLLM then derives is the same in every process.
    from vllm.utils.hashing import sha256
    from vllm.v1.core import kv_cache_utils

    kv_cache_utils.init_none_hash(sha256)
    root = kv_cache_utils.NONE_HASH
    kv_cache_utils.init_none_hash(sha256)
    assert root == kv_cache_utils.NONE_HASH
    assert compat.can_recover(1)


def check_multi(multi: Any) -> None:
    """Two offloading connectors in one: the class that both have knows the series of both."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    from kvshelf.vllm.adopt import SPEC_NAME
    from kvshelf.vllm.stats import metric_definitions

    found = KVConnectorFactory.get_connector_class_by_name("MultiConnector")
    assert found is multi.KvshelfMultiConnector
    ours, theirs = {"spec_name": SPEC_NAME}, {"spec_name": "CPUOffloadingSpec"}
    both = {"kvshelf.specs": [theirs, ours]}
    names = set(multi.SpecsOfChildren.build_metric_definitions(both))
    alone = set(multi.SpecsOfChildren.build_metric_definitions({"kvshelf.specs": [theirs]}))
    assert names == alone | set(metric_definitions()) and alone
    assert isinstance(multi.SpecsOfChildren.config_info_keys(both), tuple)
    named = {"kv_connector": "KvshelfConnector", "kv_connector_extra_config": {}}
    ours_by_path = {**named, "kv_connector_module_path": "kvshelf.vllm.connector"}
    host = {"kv_connector": "OffloadingConnector", "kv_connector_extra_config": theirs}
    for children in ([ours_by_path, host], [host, ours_by_path], [named, host]):
        check_one_class(multi, children)


def check_one_class(multi: Any, children: list[dict[str, Any]]) -> None:
    """vLLM makes the series of each class of children once: two would collide."""
    from vllm.config import KVTransferConfig

    transfer = KVTransferConfig(
        kv_connector="MultiConnector",
        kv_role="kv_both",
        kv_connector_extra_config={
            "connectors": [{**each, "kv_role": "kv_both"} for each in children]
        },
    )
    changed = multi._with_all_metrics(SimpleNamespace(kv_transfer_config=transfer))
    found = multi.MultiConnector._get_connector_classes_and_configs(changed)
    assert len({cls for cls, _ in found}) == 1, found


def check_stats() -> None:
    from kvshelf import metrics
    from kvshelf.vllm.report import WorkerReport
    from kvshelf.vllm.stats import StatsSink, metric_definitions

    assert set(metric_definitions()) == {metric.name for metric in metrics.METRICS}
    sink = StatsSink()
    report = WorkerReport()
    report.count(metrics.LOOKUPS, "hit", by=2)
    report.observe(metrics.LOOKUP_SECONDS, 0.5)
    sink.absorb(report)
    assert sink.take() is not None


if __name__ == "__main__":
    sys.exit(main())
