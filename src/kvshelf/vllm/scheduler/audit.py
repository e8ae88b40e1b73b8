"""The scheduler's side of audits: which hits are computed instead of loaded, and when it is enough.

    a hit, admitted -> picked: the request computes it, its keys are remembered
    prepare_store   -> those keys go to the workers marked: compare, do not store (``auditor``)
    workers' report -> chunks that differ are counted; too many, and kvshelf is off

Owned by the scheduler's thread. Without ``audit_percent`` it costs one attribute a hit and a store.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from kvshelf import metrics
from kvshelf.config import Settings
from kvshelf.vllm.report import WorkerReport
from kvshelf.vllm.stats import StatsSink

# Gives key -> index of the chunk's first token.
Keys = Callable[[], Mapping[bytes, int]]

_DIFFERENT = (metrics.AUDIT_CHUNKS, ("different",))


@dataclass(slots=True)
class _Audited:
    """A request that computes its hit.

    Attributes:
        computed_tokens: that vLLM had in its own prefix cache when the hit was found.
        first_tokens: key -> index of the chunk's first token; of the keys not offered yet.
    """

    computed_tokens: int
    first_tokens: dict[bytes, int] = field(default_factory=dict)


class Audits:
    """
    Attributes:
        is_off: whether kvshelf is off in this engine, because too many chunks were wrong.
    """

    def __init__(self, settings: Settings, stats: StatsSink, logger: logging.Logger) -> None:
        self._share = settings.audit_percent / 100
        self._failures_max = settings.audit_failures_max
        self._stats = stats
        self._logger = logger
        # Clients choose request ids: with a secret they cannot choose to be audited, or not to be.
        self._secret = secrets.token_bytes(16)
        self._requests: dict[str, _Audited] = {}
        self._failures = 0
        self.is_off = False
        if self._share > 0:
            stats.gauge(metrics.AUDIT_OFF, 0)

    def picks(self, req_id: str, computed_tokens: int, tokens: int, keys: Keys) -> bool:
        """Whether this request computes its hit of so many tokens behind ``computed_tokens``.

        Args:
            keys: gives key -> index of its first token, of the chunks that would be loaded.
        """
        if self._share == 0 or self._draw(req_id) >= self._share:
            return False
        first_tokens = dict(keys())
        if not first_tokens:
            return False
        self._requests[req_id] = _Audited(computed_tokens, first_tokens)
        self._stats.count(metrics.AUDIT_TOKENS, by=tokens)
        return True

    def refuses(self, req_id: str, computed_tokens: int) -> bool:
        """Whether lookups say MISS to this request, of which vLLM has so many tokens computed."""
        audited = self._requests.get(req_id)
        if audited is None:
            return self.is_off
        if computed_tokens > audited.computed_tokens:
            # It is scheduled anew, and vLLM's prefix cache holds more than before: maybe loaded for
            # another request. To compare that would prove nothing.
            firsts = audited.first_tokens
            kept = {key: first for key, first in firsts.items() if first >= computed_tokens}
            self._skip(len(firsts) - len(kept))
            audited.computed_tokens, audited.first_tokens = computed_tokens, kept
        return True

    def offered(
        self, req_id: str, keys: Collection[bytes], wanted: list[bytes]
    ) -> tuple[list[bytes], tuple[int, ...]]:
        """Add those of the request's keys that are to be compared to the ``wanted``, which are to
        be stored; the order of ``keys`` stays.

        Returns:
            the keys of the job, and which of them, by index, are to be compared.
        """
        audited = self._requests.get(req_id)
        if audited is None:
            return wanted, ()
        storing = set(wanted)
        compared = {key for key in keys if audited.first_tokens.pop(key, None) is not None}
        self._skip(len(compared & storing))  # no longer on the shelf
        compared -= storing
        chosen = [key for key in keys if key in storing or key in compared]
        return chosen, tuple(i for i, key in enumerate(chosen) if key in compared)

    def finished(self, req_id: str) -> None:
        audited = self._requests.pop(req_id, None)
        if audited is not None:
            self._skip(len(audited.first_tokens))

    def told(self, report: WorkerReport, folder: str) -> None:
        """Count what the workers found; each rank judges its own file of a chunk."""
        self._failures += int(report.counters.get(_DIFFERENT, 0))
        if self.is_off or self._failures < self._failures_max:
            return
        self.is_off = True
        self._requests.clear()
        self._stats.gauge(metrics.AUDIT_OFF, 1)
        self._logger.error(
            "kvshelf is off in this engine: audits found %d chunk files of namespace %s that "
            "differ from what it computes (audit_failures_max=%d). It loads and stores nothing "
            "until it is restarted. vLLM's own prefix cache may hold blocks loaded before: reset "
            "it. Either the shelf holds KV of other weights or settings, or blocks were "
            "overwritten before they were stored or compared.",
            self._failures,
            folder,
            self._failures_max,
        )

    def _draw(self, req_id: str) -> float:
        """A number from 0 to below 1, always the same for one request."""
        digest = blake2b(req_id.encode(), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "big") / 2**64

    def _skip(self, chunks: int) -> None:
        if chunks:
            self._stats.count(metrics.AUDIT_CHUNKS, "skipped", by=chunks)
