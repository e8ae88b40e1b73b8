"""The answer of a plan: hits, GPU seconds and money against capacity. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvshelf.plan.lru import LruCurve, lru_curve
from kvshelf.plan.shape import Shape
from kvshelf.plan.simulate import ByAge, simulate
from kvshelf.plan.trace import Trace
from kvshelf.upkeep.evict.policy import effective_age

# Shares of the footprint that are looked at unless a user names capacities.
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# Between the high and the low mark of the evictor, as a share of the capacity.
SLACK = 0.01
MONTH_SECONDS = 30 * 86_400
GB = 1e9
_LRU = "lru"


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast one replica computes and loads.

    Attributes:
        prefill_tokens_per_second: of a replica.
        load_bytes_per_second: of a replica.
        gpus: of a replica: all are busy while it computes.
    """

    # Llama-3.1-8B's shape on one H100, prompts of 8,192 tokens (benchmarks/results/gpu/README.md).
    prefill_tokens_per_second: float = 37_600.0
    # The slowest of the H100 machines there, files in the page cache.
    load_bytes_per_second: float = 30e9
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class Prices:
    """In any currency; ``seconds`` is the time in which the trace's requests come."""

    gpu_hour: float
    gb_month: float
    seconds: float

    def value_a_month(self, gpu_seconds: float) -> float:
        """Of GPU seconds saved in one trace, if every month is made of such traces."""
        return gpu_seconds / 3600 * self.gpu_hour * MONTH_SECONDS / self.seconds

    def cost_a_month(self, capacity_bytes: float) -> float:
        return capacity_bytes / GB * self.gb_month


@dataclass(frozen=True, slots=True)
class Row:
    """One capacity under one policy.

    Attributes:
        hit_rate: share of all prompt tokens that the shelf had.
        saved_gpu_seconds: that the hits would have taken to compute; 0 if they load slower.
        load_seconds: that loading them took, of all requests together.
        value_a_month, cost_a_month: None without prices.
    """

    policy: str
    capacity_bytes: int
    capacity_share: float
    hit_tokens: int
    hit_rate: float
    saved_gpu_seconds: float
    load_seconds: float
    value_a_month: float | None = None
    cost_a_month: float | None = None

    @property
    def net_a_month(self) -> float | None:
        if self.value_a_month is None or self.cost_a_month is None:
            return None
        return self.value_a_month - self.cost_a_month


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Under LRU, over every capacity: the one that gains most, and the largest that costs nothing.

    0 bytes if no capacity pays for itself.
    """

    best_bytes: int
    best_net_a_month: float
    largest_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Attributes:
        footprint_bytes: of a shelf that keeps all.
        token_bytes: of KV, all ranks.
        worthwhile_load_bytes_per_second: a hit loads faster than it computes above this.
        rows: by policy, then by capacity.
    """

    requests: int
    prompt_tokens: int
    block_tokens: int
    duration_seconds: float
    footprint_bytes: int
    token_bytes: int
    worthwhile_load_bytes_per_second: float
    loads_faster: bool
    rows: tuple[Row, ...]
    break_even: BreakEven | None


# LRU is exact and takes one pass for all capacities; the evictor's order is simulated.
POLICIES = (_LRU, "kvshelf")


def make_plan(
    trace: Trace,
    shape: Shape,
    rates: Rates,
    *,
    policies: Sequence[str] = (_LRU,),
    capacities_bytes: Sequence[float] = (),
    prices: Prices | None = None,
    touch_interval_seconds: float = 600.0,
) -> Plan:
    """
    Args:
        policies: names of ``POLICIES``.
        capacities_bytes: looked at; by default ``SHARES`` of the footprint.
    """
    block_bytes = shape.chunk_bytes(trace.block_tokens)
    footprint = trace.distinct_blocks
    capacities = [int(each // block_bytes) for each in capacities_bytes] or [
        max(1, int(share * footprint)) for share in SHARES
    ]
    per_token = shape.token_bytes
    worthwhile = per_token * rates.prefill_tokens_per_second
    maker = _RowMaker(trace, shape, rates, prices, rates.load_bytes_per_second > worthwhile)
    curve = lru_curve(trace) if _LRU in policies or prices is not None else None
    rows = []
    for policy in policies:
        for capacity in sorted(set(capacities)):
            if policy == _LRU:
                assert curve is not None
                hits = curve.hits_at(capacity)
            else:
                order = ByAge(trace, effective_age, touch_interval_seconds=touch_interval_seconds)
                hits = simulate(trace, capacity, order, slack=SLACK).hits
            rows.append(maker.row(policy, capacity, hits))
    return Plan(
        requests=trace.requests,
        prompt_tokens=int(trace.prompt_tokens.sum()),
        block_tokens=trace.block_tokens,
        duration_seconds=trace.duration_seconds,
        footprint_bytes=footprint * block_bytes,
        token_bytes=per_token,
        worthwhile_load_bytes_per_second=worthwhile,
        loads_faster=maker.loads_faster,
        rows=tuple(rows),
        break_even=maker.break_even(curve) if curve is not None else None,
    )


@dataclass(frozen=True, slots=True)
class _RowMaker:
    trace: Trace
    shape: Shape
    rates: Rates
    prices: Prices | None
    loads_faster: bool

    def gpu_seconds_a_block(self) -> float:
        """That a hit saves. With ``admission`` auto, one that loads slower is computed."""
        seconds = self.trace.block_tokens / self.rates.prefill_tokens_per_second * self.rates.gpus
        return seconds if self.loads_faster else 0.0

    def row(self, policy: str, capacity: int, hits: int) -> Row:
        block_bytes = self.shape.chunk_bytes(self.trace.block_tokens)
        tokens = hits * self.trace.block_tokens
        saved = hits * self.gpu_seconds_a_block()
        prices = self.prices
        return Row(
            policy=policy,
            capacity_bytes=capacity * block_bytes,
            capacity_share=capacity / max(1, self.trace.distinct_blocks),
            hit_tokens=tokens,
            hit_rate=tokens / int(self.trace.prompt_tokens.sum()),
            saved_gpu_seconds=saved,
            load_seconds=hits * block_bytes / self.rates.load_bytes_per_second,
            value_a_month=prices.value_a_month(saved) if prices else None,
            cost_a_month=prices.cost_a_month(capacity * block_bytes) if prices else None,
        )

    def break_even(self, curve: LruCurve) -> BreakEven | None:
        prices = self.prices
        if prices is None:
            return None
        block_bytes = self.shape.chunk_bytes(self.trace.block_tokens)
        value = curve.hits * prices.value_a_month(self.gpu_seconds_a_block())
        net = value - np.arange(len(curve.hits)) * prices.cost_a_month(block_bytes)
        best = int(net.argmax())
        paying = np.flatnonzero((net >= 0) & (value > 0))
        largest = int(paying[-1]) if len(paying) else 0
        return BreakEven(best * block_bytes, float(net[best]), largest * block_bytes)
