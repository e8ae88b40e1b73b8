"""Functions that ``safety_cases.py`` runs in vLLM's workers; each takes vLLM's worker."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

COUNTS: list[list[int]] = []  # loads and stores under way when KV memory was about to go


def nothing(worker: Any) -> None:
    """An RPC that changes nothing."""
    del worker


def about(worker: Any) -> dict[str, Any]:
    """Which runner and scheduler vLLM chose."""
    worker = getattr(worker, "worker", worker)
    config = worker.vllm_config
    return {
        "runner": type(worker.model_runner).__module__,
        "async_scheduling": bool(config.scheduler_config.async_scheduling),
        "layout": str(getattr(config.cache_config, "kv_cache_layout", None)),
    }


def set_rows(worker: Any, rows: int, factor: float) -> None:
    """The first rows of the embedding, in place, as a trainer writes."""
    weight = worker.model_runner.get_model().model.embed_tokens.weight
    weight.data[:rows] *= factor


def count_quiesced(worker: Any) -> None:
    """From now on note what each ``KvshelfWorker.quiesce`` finds under way."""
    del worker
    from kvshelf.vllm.worker.worker import KvshelfWorker

    quiesce = KvshelfWorker.quiesce

    def noting(self: Any) -> None:
        before = [len(self._transfers.loads), len(self._transfers.stores)]
        start = time.perf_counter()
        if os.environ.get("SAFETY_UNGUARDED") != "1":  # 1: see what happens without it
            quiesce(self)
        COUNTS.append([*before, round(1e3 * (time.perf_counter() - start))])

    KvshelfWorker.quiesce = noting  # type: ignore[method-assign]


def quiesced(worker: Any) -> list[list[int]]:
    """Loads, stores and milliseconds of each call since ``count_quiesced``."""
    del worker
    return list(COUNTS)


def weigh(worker: Any, rounds: int) -> dict[str, Any]:
    """What it costs to read all weights, and to look at the watched bytes."""
    import torch

    from kvshelf.vllm.worker.memory_weights import Watch, digest_of, models_of

    worker = getattr(worker, "worker", worker)
    models = models_of(worker)
    gib = 1 << 30
    weights = sum(each.numel() * each.element_size() for _, m in models for each in m.parameters())
    free_before = torch.cuda.mem_get_info()[0]
    torch.cuda.reset_peak_memory_stats()
    reserved, allocated = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    takes = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        digest = digest_of(models)
        takes.append(time.perf_counter() - start)
    watch = Watch(models)
    looks = []
    for _ in range(100):
        start = time.perf_counter()
        changed = watch.has_changed()
        looks.append(time.perf_counter() - start)
    looks.sort()
    return {
        "weights_gb": round(weights / 1e9, 2),
        "read_s": [round(each, 4) for each in takes],
        "digest_bytes": len(digest) // 2,
        "reserved_gib_before_and_peak": [
            round(reserved / gib, 3),
            round(torch.cuda.max_memory_reserved() / gib, 3),
        ],
        "allocated_gib_before_and_peak": [
            round(allocated / gib, 3),
            round(torch.cuda.max_memory_allocated() / gib, 3),
        ],
        "free_gib_before_and_after": [
            round(free_before / gib, 3),
            round(torch.cuda.mem_get_info()[0] / gib, 3),
        ],
        "watch_ms_median": round(1e3 * statistics.median(looks), 3),
        "watch_ms_p99": round(1e3 * looks[98], 3),
        "watch_changed": changed,
    }
