"""``kvshelf top``: a shelf, looked at again and again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvshelf.cli import counting
from kvshelf.cli.common import ROOT_HELP, CommandError, Exit, existing_shelf, print_json, safe
from kvshelf.cli.scrape import ScrapeError, scrape
from kvshelf.cli.units import duration, option
from kvshelf.disk.volume import Volume, volume_of
from kvshelf.text import bytes_text
from kvshelf.upkeep.census.census import SHARES
from kvshelf.upkeep.census.estimate import Estimate
from kvshelf.upkeep.census.watch import View, Watch

HELP = "watch a root: bytes, chunks, what is stored and evicted, ages, free space"
DESCRIPTION = """\
Look at a root every few seconds and show what there is and what comes and goes, from
a sample of its folders that takes a twentieth of a core. With --metrics, show hits of
a vLLM server too. Ctrl-C ends it. Writes nothing
but a file of a moment, whose time is the file system's.
"""
_LOOKUPS = "kvshelf:lookups_total"


@dataclass(frozen=True, slots=True)
class _Moment:
    """One look.

    Attributes:
        counters: of the server; None without --metrics.
        problem: why there are none.
    """

    view: View
    volume: Volume
    counters: dict[str, float] | None
    problem: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help=ROOT_HELP)
    option(parser, "--every", duration("1ms", "1d"), "between two looks", "2s")
    parser.add_argument("--once", action="store_true", help="two looks, for the rates, and end")
    parser.add_argument(
        "--metrics", metavar="URL", help="of a vLLM server: http://HOST:PORT/metrics"
    )


def run(options: argparse.Namespace) -> Exit:
    if options.metrics and not options.metrics.startswith(("http://", "https://")):
        raise CommandError(Exit.USAGE, f"--metrics {options.metrics}: must be an http(s) URL")
    root = existing_shelf(options.root)
    watch = Watch(root)
    before = _look(root, watch, options.metrics)
    show = _printer(options)
    if not options.once:
        show(root, before, None)
    while True:
        time.sleep(options.every)
        now = _look(root, watch, options.metrics)
        show(root, now, before)
        before = now
        if options.once:
            return Exit.FINE


def _look(root: Path, watch: Watch, url: str | None) -> _Moment:
    try:
        view, volume = watch.look(), volume_of(root)
    except OSError as error:
        raise CommandError(Exit.NO_SHELF, f"{root}: {error.strerror}") from error
    counters, problem = None, ""
    if url:
        try:
            counters = scrape(url)
        except ScrapeError as error:
            problem = str(error)
    return _Moment(view, volume, counters, problem)


def _printer(options: argparse.Namespace) -> Callable[[Path, _Moment, _Moment | None], None]:
    """How looks are shown: as JSON lines, over each other, or below each other."""
    # The cursor goes home and the rest is erased: no color, nothing that stays behind.
    over = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not options.once
    head = "\x1b[H\x1b[J" if over else ""

    def show(root: Path, now: _Moment, before: _Moment | None) -> None:
        if options.json:
            print_json("kvshelf.top/1", _json(root, now), lines=True)
        else:
            print(head + "\n".join(_lines(root, now, before)), flush=True)

    return show


def _lines(root: Path, now: _Moment, before: _Moment | None) -> list[str]:
    view = now.view
    lines = [
        f"{safe(str(root))}  {time.strftime('%H:%M:%S')}",
        f"bytes    {_with_error(view.bytes, bytes_text)}",
        f"files    {_with_error(view.chunks, lambda value: f'{value:,.0f}')}",
        f"stored   {_rate_text(view.stored_per_second)}, {_ages(view.stored)}",
        f"used     {_ages(view.used)}",
        f"evicted  {_rate_text(view.evicted_per_second)}",
        f"free     {now.volume.text()}",
    ]
    if now.problem:
        lines.append(f"hits     unknown: {safe(now.problem)}")
    elif now.counters is not None:
        lines.append(f"hits     {_hits_text(now, before)}")
    if view.unread.count:
        example = safe(view.unread.example)
        lines.append(f"{view.unread.count} folders could not be read, as {example}")
    if view.share < 1:
        lines.append(f"from {view.share:.1%} of the folders; +- with 95% confidence")
    return [*lines, ""]


def _with_error(estimate: Estimate, text: Callable[[float], str]) -> str:
    if not estimate.error:
        return text(estimate.value)
    return f"~{text(estimate.value)} +-{text(estimate.error)}"


def _rate_text(rate: Estimate | None) -> str:
    if rate is None:
        return "? files/s"
    error = f" +-{rate.error:.1f}" if rate.error else ""
    return f"{'~' if error else ''}{rate.value:.1f}{error} files/s"


def _ages(ages: tuple[float | None, ...]) -> str:
    shares = "/".join(f"{share:.0%}" for share in SHARES)
    return f"{counting.ages_text(ages)} ago ({shares} of files)"


def _hits_text(now: _Moment, before: _Moment | None) -> str:
    hits, lookups = _hits(now.counters or {})
    text = f"{hits:,.0f} of {lookups:,.0f} keys"
    if lookups:
        text += f", {hits / lookups:.1%}"
    if before is not None and before.counters is not None:
        hits_before, lookups_before = _hits(before.counters)
        # A server that was started anew counts from 0.
        if lookups > lookups_before and hits >= hits_before:
            share = (hits - hits_before) / (lookups - lookups_before)
            text += f"; since the last look {share:.1%} of {lookups - lookups_before:,.0f}"
    return text


def _hits(counters: dict[str, float]) -> tuple[float, float]:
    """Keys that were found, and keys that were asked for."""
    asked = {name: value for name, value in counters.items() if name.startswith(f"{_LOOKUPS}/")}
    return asked.get(f"{_LOOKUPS}/hit", 0.0), sum(asked.values())


def _json(root: Path, now: _Moment) -> dict[str, Any]:
    view = now.view
    value: dict[str, Any] = {
        "root": str(root),
        "time": round(time.time(), 3),
        **counting.summary_json(view),
        "stored_per_second": _rate_json(view.stored_per_second),
        "evicted_per_second": _rate_json(view.evicted_per_second),
        **counting.volume_json(now.volume),
        "unread": view.unread.count,
        "share_of_folders": round(view.share, 6),
    }
    if now.counters is not None:
        hits, lookups = _hits(now.counters)
        value |= {"counters": now.counters, "hit_keys": hits, "lookup_keys": lookups}
    if now.problem:
        value["metrics_problem"] = now.problem
    return value


def _rate_json(rate: Estimate | None) -> dict[str, float] | None:
    return None if rate is None else {"value": round(rate.value, 3), "error": round(rate.error, 3)}
