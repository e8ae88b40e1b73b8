"""``kvshelf ls``: the namespaces of a shelf, how much is in each, and how old it is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kvshelf.cli import counting
from kvshelf.cli.common import Exit, print_json, safe, table_lines
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import list_namespaces
from kvshelf.upkeep.census.census import Census, Summary, summary

HELP = "list the namespaces of a shelf: chunks, bytes and ages"
DESCRIPTION = """\
List each namespace of a shelf with its model, ranks, chunk files, bytes, and how long
ago chunks were stored and last used: the youngest tenth, the middle, the oldest
tenth. A big shelf answers from a sample of its folders at once, marked "~", and
better the longer it may count. Writes nothing
but a file of a moment, whose time is the file system's.
"""
add_arguments = counting.add_arguments
_HEAD = ("NAMESPACE", "MODEL", "DTYPE", "RANKS", "FILES", "BYTES", "STORED", "USED")


class _Row(NamedTuple):
    folder: str
    identity: Identity | None
    ranks: list[int]
    summary: Summary


def run(options: argparse.Namespace) -> Exit:
    root, census = counting.counted(options, _lines)
    if options.json:
        total = counting.summary_json(summary(census.ranks))
        rows = [_row_json(row) for row in _rows(root, census)]
        head = {"root": str(root), **counting.census_json(census), "total": total}
        print_json({**head, "namespaces": rows})
    return counting.status(census)


def _rows(root: Path, census: Census) -> Iterator[_Row]:
    identities = {entry.folder: entry.identity for entry in list_namespaces(root)}
    samples = dict(census.namespaces())
    for folder in sorted(identities.keys() | samples.keys()):
        ranks = samples.get(folder, [])
        numbers = [sample.folder.rank for sample in ranks]
        yield _Row(folder, identities.get(folder), numbers, summary(ranks))


def _lines(root: Path, census: Census) -> list[str]:
    rows = [_HEAD, *(_texts(row) for row in _rows(root, census))]
    if len(rows) == 1:
        return [f"no namespaces in {safe(str(root))}"]
    return [*table_lines(rows), counting.sureness(census, summary(census.ranks))]


def _texts(row: _Row) -> tuple[str, ...]:
    fields = row.identity.fields if row.identity else {}
    return (
        safe(row.folder),
        safe(row.identity.model) if row.identity else "(damaged or absent)",
        safe(_dtype(fields)),
        str(len(row.ranks)),
        counting.count_text(row.summary.chunks),
        counting.size_text(row.summary.bytes),
        counting.ages_text(row.summary.stored),
        counting.ages_text(row.summary.used),
    )


def _dtype(fields: Any) -> str:
    """Of the KV cache: "auto" is that of the model."""
    model, cache = fields.get("model_config"), fields.get("cache_dtype")
    # Identities of format 1 have it at the top.
    dtype = model.get("dtype") if isinstance(model, dict) else fields.get("dtype")
    return str((dtype if cache in (None, "auto") else cache) or "-")


def _row_json(row: _Row) -> dict[str, Any]:
    return {
        "folder": row.folder,
        "model": row.identity and row.identity.model,
        "dtype": row.identity and _dtype(row.identity.fields),
        "digest": row.identity and row.identity.digest.hex(),
        "ranks": row.ranks,
        **counting.summary_json(row.summary),
    }
