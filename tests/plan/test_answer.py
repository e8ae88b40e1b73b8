"""Hits, GPU seconds and money against capacity."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.orders import Optimum

from kvshelf.plan.answer import GB, MONTH_SECONDS, POLICIES, Prices, Rates, Row, make_plan
from kvshelf.plan.lru import lru_curve
from kvshelf.plan.shape import Shape
from kvshelf.plan.simulate import simulate
from tests.plan.traces import BLOCK_TOKENS, brute_force_lru, conversations

SHAPE = Shape(layers=4, kv_heads=2, head_dim=64)  # 2,048 bytes a token, 36 KiB a chunk of 16
CHUNK_BYTES = 36 << 10
FAST = Rates(prefill_tokens_per_second=1000.0, load_bytes_per_second=1e9, gpus=2)
TRACE = conversations(200)


def test_rows_say_what_a_shelf_of_that_size_saves() -> None:
    plan = make_plan(TRACE, SHAPE, FAST, capacities_bytes=[1e6, 3e5, 0.0])
    assert plan.requests == 200 and plan.token_bytes == 2048
    assert plan.footprint_bytes == TRACE.distinct_blocks * CHUNK_BYTES
    assert plan.worthwhile_load_bytes_per_second == 2048 * 1000 and plan.loads_faster
    assert [row.capacity_bytes // CHUNK_BYTES for row in plan.rows] == [0, 8, 27]
    for row in plan.rows:
        capacity = row.capacity_bytes // CHUNK_BYTES
        hits = brute_force_lru(TRACE, capacity)
        assert row.policy == "lru" and row.hit_tokens == hits * BLOCK_TOKENS
        assert row.hit_rate == pytest.approx(hits * BLOCK_TOKENS / TRACE.prompt_tokens.sum())
        assert row.capacity_share == capacity / TRACE.distinct_blocks
        assert row.saved_gpu_seconds == pytest.approx(hits * BLOCK_TOKENS / 1000 * 2)
        assert row.load_seconds == pytest.approx(hits * CHUNK_BYTES / 1e9)
        assert row.value_a_month is row.cost_a_month is row.net_a_month is None
    assert plan.break_even is None and plan.rows[-1].hit_tokens > 0


def test_by_default_shares_of_the_footprint() -> None:
    plan = make_plan(TRACE, SHAPE, FAST, policies=list(POLICIES))
    assert [row.policy for row in plan.rows[::7]] == list(POLICIES) and len(plan.rows) == 14
    for row in plan.rows[6::7]:
        assert row.capacity_share == 1.0
        assert row.hit_tokens == lru_curve(TRACE).hits_at(10**9) * BLOCK_TOKENS, row.policy
    for row in plan.rows:
        capacity = row.capacity_bytes // CHUNK_BYTES
        best = simulate(TRACE, capacity, Optimum(TRACE)).hits * BLOCK_TOKENS
        assert row.hit_tokens <= best or row.capacity_share < 0.05


def test_what_loads_slower_than_it_computes_saves_nothing() -> None:
    slow = Rates(prefill_tokens_per_second=1000.0, load_bytes_per_second=2048 * 1000.0)
    plan = make_plan(TRACE, SHAPE, slow, prices=Prices(1.0, 0.1, 100.0))
    assert not plan.loads_faster
    assert all(row.saved_gpu_seconds == row.value_a_month == 0 for row in plan.rows)
    assert plan.break_even is not None and plan.break_even.largest_bytes == 0


@pytest.mark.parametrize("gb_month", [0.0, 1.0, 1e4, 4e4, 1e9])
def test_break_even_is_as_by_trying_every_capacity(gb_month: float) -> None:
    prices = Prices(gpu_hour=2.0, gb_month=gb_month, seconds=TRACE.duration_seconds)
    every = [(n + 0.5) * CHUNK_BYTES for n in range(TRACE.distinct_blocks + 1)]
    plan = make_plan(TRACE, SHAPE, FAST, capacities_bytes=every, prices=prices)

    def net(row: Row) -> float:
        saved = row.hit_tokens / 1000 * 2 / 3600 * 2.0
        value = saved * MONTH_SECONDS / TRACE.duration_seconds
        assert row.value_a_month == pytest.approx(value)
        assert row.cost_a_month == pytest.approx(row.capacity_bytes / GB * gb_month)
        assert row.net_a_month is not None
        return row.net_a_month

    assert plan.break_even is not None
    best = max(plan.rows, key=net)
    assert plan.break_even.best_net_a_month == pytest.approx(net(best))
    assert plan.break_even.best_bytes == best.capacity_bytes
    paying = [row.capacity_bytes for row in plan.rows if net(row) >= 0 and row.hit_tokens]
    assert plan.break_even.largest_bytes == max(paying, default=0)


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra kvshelf[plot] is not installed")
    from kvshelf.plan.plot import plot_plan

    plan = make_plan(
        TRACE, SHAPE, FAST, policies=["lru", "kvshelf"], prices=Prices(1.0, 1.0, 100.0)
    )
    plot_plan(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="not supported"):
        plot_plan(plan, tmp_path / "plan.nothing")
