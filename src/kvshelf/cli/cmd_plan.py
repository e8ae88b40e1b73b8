"""``kvshelf plan``: what a shelf of some capacity would have saved, from a trace of requests."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kvshelf.cli.cmd_bench import check_picture, drawing
from kvshelf.cli.common import CommandError, Exit, print_json, safe, table_lines
from kvshelf.cli.units import Reader, duration, number, option, size_in, whole
from kvshelf.config import Settings
from kvshelf.errors import ConfigError
from kvshelf.plan.answer import GB, POLICIES, Plan, Prices, Rates, Row, make_plan
from kvshelf.plan.plot import plot_plan
from kvshelf.plan.read import FORMATS, read_trace
from kvshelf.plan.replay import POLICIES as REPLAY_POLICIES
from kvshelf.plan.replay import Replayed, ReplayError, replay
from kvshelf.plan.shape import DEFAULT_SHAPE, Shape, read_shape
from kvshelf.plan.trace import Trace, TraceError

HELP = "say what a shelf of some capacity would have saved, from a trace of requests"
DESCRIPTION = """\
Read a trace, and print against capacity: the share of prompt tokens that the shelf would
have had, the GPU seconds that this saves, and, with prices, what it gains a month.
TRACE is one of: Mooncake's JSON lines with hash_ids (.jsonl), a log of vLLM with
--enable-log-requests and VLLM_LOGGING_LEVEL=DEBUG, or a CSV (.csv) with the columns
prompt_tokens and, if they are known, seconds, prefix_group, prefix_tokens.
docs/howto/plan-capacity.md says how to read the answer, and what it leaves out.
"""
_RATES = Rates()
_WHOLE = whole(1, 10**9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", type=Path, help="the file with the requests")
    parser.add_argument("--format", choices=FORMATS, default="", help="default: by the name")
    option(
        parser,
        "--block-tokens",
        _WHOLE,
        "tokens of a chunk (default: 512 for mooncake, else 256); of a mooncake trace, as many as "
        "one of its hash_ids stands for",
    )
    _add_shape(parser.add_argument_group("the model (default: the shape of Llama-3.1-8B)"))
    _add_rates(parser.add_argument_group("speed and price"))
    what = parser.add_argument_group("the answer")
    capacity_help = "capacities (default: 1 to 100%% of what the trace would fill)"
    sizes = Reader("SIZE,...", _list_of(size_in("1", "1000PB")))
    option(what, "--capacity", sizes, capacity_help)
    option(
        what,
        "--policy",
        Reader("NAME,...", _list_of(_policy)),
        "orders of eviction: lru, exact in one pass, and kvshelf, what the evictor does, simulated",
        "lru",
    )
    touch_help = "as in the settings, for the policy kvshelf"
    touch_default = f"{Settings().touch_interval_seconds:g}s"
    option(what, "--touch-interval", duration("0s", "366d"), touch_help, touch_default)
    what.add_argument("--plot", type=Path, metavar="FILE.png", help="write a picture too")
    check = parser.add_argument_group("a check against a real shelf")
    replay_help = "play the requests against a shelf of tiny chunks in DIR, absent or empty"
    check.add_argument("--replay", type=Path, metavar="DIR", help=replay_help)
    option(check, "--replay-requests", _WHOLE, "requests that are played", 1000)


def _add_shape(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--config", type=Path, metavar="config.json", help="of Hugging Face")
    option(group, "--layers", _WHOLE, "that keep KV")
    option(group, "--kv-heads", _WHOLE, "of all ranks together")
    option(group, "--head-dim", _WHOLE, "with --mla: latent and rope numbers a token")
    group.add_argument("--mla", action="store_true", default=None, help="one latent vector a token")
    option(group, "--dtype-bytes", _WHOLE, "2, or 1 for an FP8 cache")
    option(group, "--tensor-parallel", _WHOLE, "ranks (default: 1)")
    group.add_argument(
        "--compress", action="store_true", default=None, help="bf16 KV that engines pack"
    )


def _add_rates(group: argparse._ArgumentGroup) -> None:
    option(
        group,
        "--prefill-tokens-per-second",
        number(1e-15, 1e15),
        "that a replica computes; the default is an 8B model's on one H100",
        _RATES.prefill_tokens_per_second,
    )
    option(
        group,
        "--load-bytes-per-second",
        size_in("1", "1PB"),
        "that a replica loads; the default is an H100's from the page cache: measure your mount",
        f"{_RATES.load_bytes_per_second / GB:g}GB",
    )
    price = number(0, 1e15, "P")
    option(group, "--gpu-hour-price", price, "of one GPU, in any currency")
    option(group, "--gb-month-price", price, "of storage")
    duration_help = "in which the requests came (default: as the trace says)"
    option(group, "--duration", duration("1ms", "36600d"), duration_help)


def run(options: argparse.Namespace) -> Exit:
    if options.plot:
        check_picture(options.plot)
    try:
        trace = read_trace(options.trace, options.format, options.block_tokens or 0)
        shape = _shape(options)
    except TraceError as error:
        raise CommandError(Exit.USAGE, safe(str(error))) from error
    if not len(trace.blocks):
        message = f"no prompt of {options.trace} fills a block of {trace.block_tokens} tokens"
        raise CommandError(Exit.USAGE, safe(message))
    rates = Rates(
        options.prefill_tokens_per_second,
        float(options.load_bytes_per_second),
        gpus=shape.ranks,
    )
    plan = make_plan(
        trace,
        shape,
        rates,
        policies=list(dict.fromkeys(options.policy)),
        capacities_bytes=options.capacity or (),
        prices=_prices(options, trace),
        touch_interval_seconds=options.touch_interval,
    )
    replayed = _replay(options, trace) if options.replay else []
    if options.plot:
        with drawing(options.plot):
            plot_plan(plan, options.plot)
    if options.json:
        print_json("kvshelf.plan/1", _as_json(plan, rates, replayed))
    else:
        _print_plan(plan, rates)
        for policy, each in replayed:
            print(_replay_line(policy, each))
    return Exit.FINE if all(e.hits == e.simulated_hits for _, e in replayed) else Exit.FINDINGS


def _shape(options: argparse.Namespace) -> Shape:
    shape = read_shape(options.config) if options.config else DEFAULT_SHAPE
    given = {
        "layers": options.layers,
        "kv_heads": options.kv_heads,
        "head_dim": options.head_dim,
        "dtype_bytes": options.dtype_bytes,
        "mla": options.mla,
        "ranks": options.tensor_parallel,
        "packed": options.compress,
    }
    try:
        return replace(shape, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise CommandError(Exit.USAGE, f"the model's shape: {error}") from error


def _prices(options: argparse.Namespace, trace: Trace) -> Prices | None:
    given = (options.gpu_hour_price, options.gb_month_price)
    if given == (None, None):
        return None
    if None in given:
        message = "--gpu-hour-price and --gb-month-price are allowed only together"
        raise CommandError(Exit.USAGE, message)
    seconds = options.duration or trace.duration_seconds
    if not seconds:
        message = "the trace has no times: say with --duration in what time it came"
        raise CommandError(Exit.USAGE, message)
    return Prices(*given, seconds=seconds)


def _replay(options: argparse.Namespace, trace: Trace) -> list[tuple[str, Replayed]]:
    """The first requests, at a tenth of what they fill: enough to evict all the time."""
    part = trace.part(0, min(options.replay_requests, trace.requests))
    policy = next((p for p in options.policy if p in REPLAY_POLICIES), "lru")
    interval = options.touch_interval if policy == "kvshelf" else 0.0
    try:
        done = replay(
            part,
            options.replay,
            max(1, part.distinct_blocks // 10),
            policy=policy,
            touch_interval_seconds=interval,
        )
    except (ConfigError, ReplayError, OSError) as error:
        raise CommandError(Exit.USAGE, f"--replay: {error}") from error
    return [(policy, done)]


def _as_json(plan: Plan, rates: Rates, replayed: list[tuple[str, Replayed]]) -> dict[str, Any]:
    value = asdict(plan)
    for row, made in zip(value["rows"], plan.rows, strict=True):
        row["net_a_month"] = made.net_a_month
    value["rates"] = asdict(rates)
    value["replay"] = [{"policy": policy, **asdict(each)} for policy, each in replayed]
    return value


def _print_plan(plan: Plan, rates: Rates) -> None:
    compute_ms = 1e6 / rates.prefill_tokens_per_second
    load_ms = 1e6 * plan.token_bytes / rates.load_bytes_per_second
    print(
        f"{plan.requests:,} requests, {plan.prompt_tokens:,} prompt tokens in "
        f"{plan.duration_seconds:,.0f} s; all their chunks: {plan.footprint_bytes / GB:,.1f} GB "
        f"({plan.block_tokens} tokens a chunk, {plan.token_bytes:,} bytes a token)"
    )
    print(
        f"1,000 tokens: computed in {compute_ms:.1f} ms at {rates.prefill_tokens_per_second:,.0f} "
        f"tokens/s, loaded in {load_ms:.1f} ms at {rates.load_bytes_per_second / GB:g} GB/s; "
        f"loading is faster above {plan.worthwhile_load_bytes_per_second / GB:.2g} GB/s"
    )
    if not plan.loads_faster:
        print(
            "loading is slower: kvshelf would compute these hits (admission=auto), saving nothing"
        )
    print()
    priced = plan.break_even is not None
    head = ["POLICY", "CAPACITY GB", "OF ALL %", "HIT %", "GPU S SAVED", "LOAD S"]
    rows = [head + (["VALUE/MONTH", "COST/MONTH", "GAIN/MONTH"] if priced else [])]
    rows += [_cells(row) for row in plan.rows]
    print("\n".join(table_lines(rows, right=range(1, len(rows[0])))))
    if plan.break_even is not None:
        best = plan.break_even
        print()
        if best.largest_bytes:
            print(
                f"best: {best.best_bytes / GB:,.1f} GB gain {best.best_net_a_month:,.2f} a month; "
                f"up to {best.largest_bytes / GB:,.1f} GB pay for themselves (LRU)"
            )
        else:
            print("no capacity pays for itself at these prices")


def _cells(row: Row) -> list[str]:
    cells = [
        row.policy,
        f"{row.capacity_bytes / GB:,.1f}",
        f"{100 * row.capacity_share:.1f}",
        f"{100 * row.hit_rate:.2f}",
        f"{row.saved_gpu_seconds:,.1f}",
        f"{row.load_seconds:,.1f}",
    ]
    if row.net_a_month is not None:
        money = (row.value_a_month, row.cost_a_month, row.net_a_month)
        cells += [f"{each:,.2f}" for each in money]
    return cells


def _replay_line(policy: str, each: Replayed) -> str:
    verdict = "as simulated" if each.hits == each.simulated_hits else "NOT as simulated"
    return (
        f"replay ({policy}): {each.requests:,} requests, room for {each.capacity_blocks:,} chunks: "
        f"{each.hits:,} chunks loaded and verified, {each.simulated_hits:,} simulated: {verdict}"
    )


def _list_of(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [read(part.strip()) for part in text.split(",")]

    return parse


def _policy(text: str) -> str:
    if text not in POLICIES:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are {', '.join(POLICIES)}")
    return text
