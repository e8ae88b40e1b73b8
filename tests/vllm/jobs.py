"""What tests of the tier need of vLLM, as each version names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import ReqContext
from vllm.v1.kv_offload.config import OffloadingConfig
from vllm.v1.kv_offload.tiering import base

CONTEXT = ReqContext(req_id="r")


def transfer_job(job_id: int, keys: Sequence[bytes], rows: Sequence[int], *, is_load: bool) -> Any:
    """vLLM's ``TransferJob``, which was ``JobMetadata`` until 0.27."""
    kind = getattr(base, "TransferJob", None) or base.JobMetadata
    return kind(job_id, keys, np.array(rows), is_load, CONTEXT)


def known(kind: type[Any], **values: Any) -> Any:
    """An object of one of vLLM's dataclasses, with those of the values that it has fields for."""
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def has_setting(name: str) -> bool:
    """Whether this vLLM's offloading configuration has a field: ``canonical_layout`` since 0.28,
    ``kv_cache_layout`` since 0.29."""
    return name in {each.name for each in fields(OffloadingConfig)}
