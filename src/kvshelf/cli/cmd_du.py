"""``kvshelf du``: what takes how much room on a shelf."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kvshelf.cli import counting
from kvshelf.cli.common import Exit, print_json, safe, table_lines
from kvshelf.disk.volume import volume_of
from kvshelf.text import bytes_text
from kvshelf.upkeep.census.census import Census, RankSample, summary
from kvshelf.upkeep.census.folders import temp_bytes

HELP = "say what takes how much room on a shelf"
DESCRIPTION = """\
Bytes and chunk files of each namespace and rank, the largest namespace first, its temp
files, and what is free. A big shelf answers from a sample of its folders at once,
marked "~", and better the longer it may count. Writes nothing
but a file of a moment, whose time is the file system's.
"""
add_arguments = counting.add_arguments


def run(options: argparse.Namespace) -> Exit:
    root, census = counting.counted(options, _lines)
    if options.json:
        print_json(
            {
                "root": str(root),
                **counting.census_json(census),
                "total": counting.summary_json(summary(census.ranks)),
                **counting.volume_json(volume_of(root)),
                "namespaces": [_json(root, census, *each) for each in _largest_first(census)],
            }
        )
    return counting.status(census)


def _largest_first(census: Census) -> list[tuple[str, list[RankSample]]]:
    return sorted(census.namespaces(), key=lambda each: -summary(each[1]).bytes.value)


def _lines(root: Path, census: Census) -> list[str]:
    total = summary(census.ranks)
    rows: list[tuple[str, ...]] = [("BYTES", "SHARE", "FILES", "WHERE")]

    def add(samples: list[RankSample], where: str) -> None:
        part = summary(samples)
        share = part.bytes.value / total.bytes.value if total.bytes.value else 0.0
        size, files = counting.size_text(part.bytes), counting.count_text(part.chunks)
        rows.append((size, f"{share:.1%}", files, where))

    for folder, ranks in _largest_first(census):
        add(ranks, safe(folder))
        if len(ranks) > 1:
            for sample in ranks:
                add([sample], f"  rank {sample.folder.rank}")
        temp = temp_bytes(root, folder, census.unread)
        if temp:
            rows.append((bytes_text(temp), "", "", "  temp files"))
    add(census.ranks, "all")
    volume = volume_of(root)
    line = volume.text()
    if volume.counts_bytes:
        free, size = bytes_text(volume.free_bytes), bytes_text(volume.size_bytes)
        line = f"{volume.used_percent}% used, {free} of {size} free on the file system"
    return [*table_lines(rows), counting.sureness(census, total), line]


def _json(root: Path, census: Census, folder: str, ranks: list[RankSample]) -> dict[str, Any]:
    return {
        "folder": folder,
        **counting.summary_json(summary(ranks)),
        "temp_bytes": temp_bytes(root, folder, census.unread),
        "ranks": [
            {"rank": sample.folder.rank, **counting.summary_json(summary([sample]))}
            for sample in ranks
        ],
    }
