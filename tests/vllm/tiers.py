"""A tier over host memory, driven as vLLM's TieringOffloadingManager drives it; no engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import LookupResult, ScheduleEndContext
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from kvshelf.vllm import plugin

from .jobs import CONTEXT, tier_spec, transfer_job

ROWS, ROW_BYTES = 32, 20_480
STEP_END = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())


class Engine:
    """Host memory and a tier over it, with the calls that vLLM makes of both."""

    def __init__(self, root: Path, spec: Any = None, **options: Any) -> None:
        plugin.register()  # 0.27 knows a tier of others by its registered name alone
        self.memory = np.random.default_rng(3).integers(0, 256, (ROWS, ROW_BYTES), dtype=np.uint8)
        view = memoryview(self.memory)
        entry = {"type": "KvshelfTier", "module_path": "kvshelf.vllm.tier", "root_dir": str(root)}
        if "shared_storage_path" in options:
            del entry["root_dir"]
        self.tier: Any = SecondaryTierFactory.create_secondary_tier(
            {**entry, "evict": False, **options}, view, spec or tier_spec()
        )
        self.jobs = 0

    def lookup(self, *keys: bytes) -> list[LookupResult]:
        deadline = time.monotonic() + 20
        while True:
            answers = [self.tier.lookup(k, CONTEXT) for k in keys]
            self.tier.on_schedule_end(STEP_END)
            if LookupResult.RETRY not in answers:
                return answers
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def run(self, kind: str, keys: list[bytes], rows: list[int]) -> Any:
        self.jobs += 1
        job = transfer_job(self.jobs, keys, rows, is_load=kind == "load")
        getattr(self.tier, f"submit_{kind}")(job)
        deadline = time.monotonic() + 20
        while True:
            results = list(self.tier.get_finished_jobs())
            if results:
                (result,) = results
                assert result.job_id == self.jobs
                return result
            assert time.monotonic() < deadline
            time.sleep(0.001)


def moved(result: Any) -> int | None:
    """None before 0.31, whose results have no bytes."""
    assert result.transfer_bytes is not None if hasattr(result, "transfer_bytes") else True
    bytes_moved: int | None = getattr(result, "transfer_bytes", None)
    return bytes_moved


def files(root: Path) -> list[Path]:
    return sorted(root.glob("m-*/r0/*/*.kv"))
