"""What vLLM's offloading connector asks for: a manager for the scheduler, a worker a rank."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    OffloadingManager,
    OffloadingSpec,
    OffloadingWorker,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from kvshelf.config import Settings
from kvshelf.disk.namespace import Identity
from kvshelf.doctor.quick import quick_line
from kvshelf.engine import EngineConfig, GroupMemory, Pages
from kvshelf.errors import ConfigError
from kvshelf.shelf import Shelf
from kvshelf.upkeep.evict.duties import duties_of
from kvshelf.vllm import compat
from kvshelf.vllm.scheduler.chunk_table import ChunkTable
from kvshelf.vllm.scheduler.manager import KvshelfManager
from kvshelf.vllm.stats import metric_definitions
from kvshelf.vllm.worker.auditor import Auditor
from kvshelf.vllm.worker.auditor import make as make_auditor
from kvshelf.vllm.worker.pages import PAGES_KEY
from kvshelf.vllm.worker.worker import KvshelfWorker

logger = compat.logger_of(__name__)

# Where the connector leaves the identity for the spec: vLLM hands a spec nothing but its own
# OffloadingConfig, which lacks most of what decides the bytes.
IDENTITY_KEY = "kvshelf.identity"


class SharedStorageOffloadingSpec(OffloadingSpec):
    """Chunks on a shared directory. Source: vLLM's OffloadingSpec (vllm/v1/kv_offload/base.py).

    Takes the settings of the llm-d FS backend under their names, and our own beside them
    (docs/reference/settings.md). Made by ``KvshelfConnector``; vLLM's own connector ends the engine
    when a load fails, so it is refused.

    Raises:
        ConfigError: a setting is unknown, malformed, or the root cannot be used.
    """

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        """Our series on vLLM's /metrics; names in ``kvshelf.metrics``."""
        del extra_config  # all of them, whatever the settings
        return metric_definitions()

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        identity = config.extra_config.get(IDENTITY_KEY)
        if not isinstance(identity, Identity):
            raise ConfigError(
                "kv_connector",
                "OffloadingConnector",
                "use KvshelfConnector: vLLM's own connector ends the engine when a load fails "
                "(this message also appears if vLLM's plugins are disabled by VLLM_PLUGINS)",
            )
        if not compat.can_recover(len(config.groups)):
            raise ConfigError(
                "kv_connector",
                "KvshelfConnector",
                f"this vLLM cannot recover a failed load of a model with {len(config.groups)} KV "
                "cache groups: use a newer vLLM or --disable-hybrid-kv-cache-manager",
            )
        self._identity = identity
        self._settings = Settings.from_mapping(config.extra_config)
        self._engine_config = EngineConfig.from_settings(self._settings)

    @override
    def get_manager(self) -> OffloadingManager:
        settings = self._settings
        shelf = Shelf(
            settings.roots,
            self._identity,
            world_size=self.config.parallel.world_size,
            config=self._engine_config,
        )
        for root in shelf.roots:  # now they have answered
            logger.info("%s", quick_line(Path(root)))
        return KvshelfManager(
            shelf,
            ChunkTable.of(settings, self.config.parallel.world_size),
            settings,
            chunk_bytes=self._chunk_bytes(),
            chunk_tokens=self._chunk_tokens(),
            emit_events=self.config.enable_kv_cache_events,
            duties=duties_of(settings, shelf),
        )

    def _chunk_tokens(self) -> int:
        """Tokens of one chunk; of the groups' the fewest."""
        return self.blocks_per_chunk * min(group.tokens_per_block for group in self.config.groups)

    def _chunk_bytes(self) -> int:
        """Bytes of one chunk's files, all ranks'; the mean of the groups."""
        fields = self._identity.fields["groups"]
        pages = [
            len(group.layer_names) * fields[index]["page_bytes"]
            for index, group in zip(compat.group_ids(self.config), self.config.groups, strict=True)
        ]
        mean = sum(pages) / len(pages)
        return max(1, int(mean * self.blocks_per_chunk * self.config.parallel.world_size))

    @override
    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        group_ids = compat.group_ids(self.config)
        device = _device_of(kv_caches)
        shelf = Shelf(
            self._settings.roots,
            self._identity,
            rank=self.config.parallel.rank,
            world_size=self.config.parallel.world_size,
            groups=_group_memories(kv_caches),
            group_ids=group_ids,
            config=self._engine_config,
            device=_device_name(device),
            keep_alive=kv_caches,
        )
        return KvshelfWorker(
            shelf,
            group_ids=group_ids,
            blocks_per_chunk=self.blocks_per_chunk,
            current_stream=partial(_current_stream, device),
            load_timeout_seconds=self._settings.load_timeout_seconds,
            close_timeout_seconds=self._settings.close_timeout_seconds,
            auditor=self._auditor(kv_caches),
        )

    def _auditor(self, kv_caches: CanonicalKVCaches) -> Auditor | None:
        if self._settings.audit_percent <= 0:
            return None
        pages = [
            [kv_caches.tensors[ref.tensor_idx].tensor[:, : ref.page_size_bytes] for ref in refs]
            for refs in kv_caches.group_data_refs
        ]
        return make_auditor(
            self._settings,
            self._engine_config,
            self._identity,
            self.config.extra_config[PAGES_KEY],
            pages,
            rank=self.config.parallel.rank,
            world_size=self.config.parallel.world_size,
            group_ids=compat.group_ids(self.config),
            blocks_per_chunk=self.blocks_per_chunk,
        )


def _group_memories(kv_caches: CanonicalKVCaches) -> list[GroupMemory]:
    """Block memory of each offloaded group: its layers' pages in vLLM's order."""
    memories = []
    for refs in kv_caches.group_data_refs:
        tensors = [kv_caches.tensors[ref.tensor_idx].tensor for ref in refs]
        pages = tuple(
            Pages(
                address=tensor.data_ptr(),
                stride_bytes=_stride_bytes(tensor),
                page_bytes=ref.page_size_bytes,
            )
            for tensor, ref in zip(tensors, refs, strict=True)
        )
        memories.append(GroupMemory(pages, num_blocks=min(t.shape[0] for t in tensors)))
    return memories


def _stride_bytes(tensor: torch.Tensor) -> int:
    return int(tensor.stride(0) * tensor.element_size())


def _device_of(kv_caches: CanonicalKVCaches) -> torch.device:
    device = kv_caches.tensors[0].tensor.device
    if device.type not in ("cpu", "cuda"):
        raise ConfigError("device", str(device), "kvshelf moves KV of the CPU and of NVIDIA GPUs")
    return device


def _device_name(device: torch.device) -> str:
    """As kvshelf names it: torch's "cuda" without a number is the current one."""
    if device.type == "cpu":
        return "cpu"
    return f"cuda:{torch.cuda.current_device() if device.index is None else device.index}"


def _current_stream(device: torch.device) -> int:
    return 0 if device.type == "cpu" else int(torch.cuda.current_stream(device).cuda_stream)
