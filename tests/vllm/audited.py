"""A replica that audits, at the adapter's level."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from vllm.v1.kv_offload.base import LookupResult, ReqContext

from kvshelf import EngineConfig, metrics
from kvshelf.config import Settings
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.scheduler import manager
from kvshelf.vllm.scheduler.audit import Audits
from kvshelf.vllm.stats import StatsSink
from kvshelf.vllm.worker import auditor
from kvshelf.vllm.worker.compare import Kind, Section
from kvshelf.vllm.worker.pages import PageKinds

from .test_adapter import CONTEXT, IDENTITY, LAYERS, PER_CHUNK, Replica

HIT = LookupResult.HIT
SETTINGS = Settings(audit_percent=100.0, audit_failures_max=3)
LOG = logging.getLogger("vllm.kvshelf.test")


class Audited(Replica):
    """A replica that audits every hit; its KV cache holds float32 values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rng = np.random.default_rng(8)
        for layer in self.memory[0]:
            layer.view(np.float32)[:] = rng.normal(size=layer.view(np.float32).shape)
        self.sink = self.manager._stats = Sink()
        self.manager.audits = Audits(SETTINGS, self.sink, LOG)
        self.auditor = auditor.make(
            Settings(shared_storage_path=str(self.root), audit_memory_mib=1),
            EngineConfig(),
            IDENTITY,
            PageKinds([[(4096, (Section(Kind.FLOAT32),))] * LAYERS], Kind.FLOAT32),
            [[torch.from_numpy(layer) for layer in self.memory[0]]],
            rank=0,
            world_size=1,
            group_ids=[0],
            blocks_per_chunk=PER_CHUNK,
        )
        self.worker._auditor = self.auditor

    def pick(self, *keys: bytes, context: ReqContext = CONTEXT) -> None:
        """As the connector does when the request's hit was found."""
        assert self.lookup(*keys) == [HIT] * len(keys)
        firsts = {each: 16 * i for i, each in enumerate(keys)}
        assert self.manager.audits.picks(context.req_id, 0, 16 * len(keys), lambda: firsts)

    def compute(self, ids: list[int], like: list[int]) -> None:
        """The model computes into these blocks what is in others."""
        for layer in self.memory[0]:
            layer[ids] = layer[like]

    def settled(self) -> dict[str, float]:
        """Counters of audits, once all that were begun are over."""
        deadline = time.monotonic() + 10
        while len(self.auditor._free) < self.auditor.slots:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        self.step()
        return self.counted()

    def counted(self) -> dict[str, float]:
        """Counters of audits since the last call."""
        counted, self.sink.counted = dict(self.sink.counted), Counter()
        return counted


class Sink(StatsSink):
    """Keeps the counters of audits, by result."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        super().count(name, *labels, by=by)
        if name == metrics.AUDIT_CHUNKS:
            self.counted[labels[0]] += int(by)

    def absorb(self, report: WorkerReport) -> None:
        super().absorb(report)
        for (name, labels), value in report.counters.items():
            if name == metrics.AUDIT_CHUNKS:
                self.counted[labels[0]] += int(value)


@contextmanager
def captured(handler: logging.Handler) -> Iterator[None]:
    """What audits log goes to a handler, whatever vLLM has made of its own logger."""
    loggers = [LOG, auditor.logger, manager.logger]
    kept = [each.propagate for each in loggers]
    for each in loggers:
        each.propagate = False
        each.addHandler(handler)
    try:
        yield
    finally:
        for each, propagate in zip(loggers, kept, strict=True):
            each.propagate = propagate
            each.removeHandler(handler)
