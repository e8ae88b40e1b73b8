"""``kvshelf ls``: the namespaces of a shelf: how much is in each, how old it is, whose it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kvshelf.cli import counting
from kvshelf.cli.common import Exit, cut, listed_namespaces, print_json, safe, table_lines
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import NamespaceEntry, list_namespaces
from kvshelf.disk.volume import volume_of
from kvshelf.text import bytes_text
from kvshelf.upkeep.census.census import Census, RankSample, summary
from kvshelf.upkeep.census.folders import temp_bytes

HELP = "list the namespaces of a root: chunks, bytes, ages, identities"
DESCRIPTION = """\
List each namespace of a root with its model, ranks, chunk files, bytes, and how long
ago chunks were stored and last used: the youngest tenth, the middle, the oldest
tenth. On a big root the numbers are estimates from some of its folders, marked "~":
they come at once, and get better the longer it may count. Writes nothing but a file of
a moment, whose time is the file system's.

--sizes       what takes how much room, the largest namespace first: ranks, temp files,
              and what is free on the file system.
--identities  count nothing: show the engine and the digest of each namespace; a
              namespace.json that is damaged is a finding. kvshelf diff compares two.
"""
_HEAD = ("NAMESPACE", "MODEL", "DTYPE", "RANKS", "FILES", "BYTES", "STORED", "USED")


class _Row(NamedTuple):
    folder: str
    identity: Identity | None
    ranks: list[RankSample]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    counting.add_arguments(parser)
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--sizes", action="store_true", help="what takes how much room")
    views.add_argument("--identities", action="store_true", help="engines and digests, no counts")


def run(options: argparse.Namespace) -> Exit:
    if options.identities:
        return _identities(options)
    show: Callable[[Path, Census], list[str]] = _size_lines if options.sizes else _lines
    root, census = counting.counted(options, show)
    if options.json:
        rows = [_row_json(root, census, row) for row in _rows(root, census)]
        print_json(
            "kvshelf.ls/1",
            {
                "root": str(root),
                **counting.census_json(census),
                "total": counting.summary_json(summary(census.ranks)),
                **counting.volume_json(volume_of(root)),
                "namespaces": rows,
            },
        )
    return Exit.FINDINGS if census.unread.count else Exit.FINE


def _rows(root: Path, census: Census) -> Iterator[_Row]:
    identities = {entry.folder: entry.identity for entry in list_namespaces(root)}
    samples = dict(census.namespaces())
    for folder in sorted(identities.keys() | samples.keys()):
        yield _Row(folder, identities.get(folder), samples.get(folder, []))


def _lines(root: Path, census: Census) -> list[str]:
    rows = [_HEAD, *(_texts(row) for row in _rows(root, census))]
    if len(rows) == 1:
        return [f"no namespaces in {safe(str(root))}"]
    return [*table_lines(rows), counting.sureness(census, summary(census.ranks))]


def _texts(row: _Row) -> tuple[str, ...]:
    found = summary(row.ranks)
    return (
        safe(row.folder),
        safe(row.identity.model) if row.identity else "(damaged or absent)",
        safe(_dtype(row.identity)) if row.identity else "-",
        str(len(row.ranks)),
        counting.count_text(found.chunks),
        counting.size_text(found.bytes),
        counting.ages_text(found.stored),
        counting.ages_text(found.used),
    )


def _dtype(identity: Identity) -> str:
    """Of the KV cache: "auto" is that of the model."""
    fields = identity.fields
    model, cache = fields.get("model_config"), fields.get("cache_dtype")
    # Identities of format 1 have it at the top.
    dtype = model.get("dtype") if isinstance(model, dict) else fields.get("dtype")
    return str((dtype if cache in (None, "auto") else cache) or "-")


def _size_lines(root: Path, census: Census) -> list[str]:
    total = summary(census.ranks)
    rows: list[tuple[str, ...]] = [("BYTES", "SHARE", "FILES", "WHERE")]

    def add(samples: list[RankSample], where: str) -> None:
        part = summary(samples)
        share = part.bytes.value / total.bytes.value if total.bytes.value else 0.0
        size, files = counting.size_text(part.bytes), counting.count_text(part.chunks)
        rows.append((size, f"{share:.1%}", files, where))

    for folder, ranks in sorted(
        census.namespaces(), key=lambda each: -summary(each[1]).bytes.value
    ):
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


def _row_json(root: Path, census: Census, row: _Row) -> dict[str, Any]:
    return {
        "folder": row.folder,
        "model": row.identity and row.identity.model,
        "dtype": row.identity and _dtype(row.identity),
        "digest": row.identity and row.identity.digest.hex(),
        **counting.summary_json(summary(row.ranks)),
        "temp_bytes": temp_bytes(root, row.folder, census.unread),
        "ranks": [
            {"rank": sample.folder.rank, **counting.summary_json(summary([sample]))}
            for sample in row.ranks
        ],
    }


def _identities(options: argparse.Namespace) -> Exit:
    root, entries = listed_namespaces(options.root)
    findings = [entry for entry in entries if entry.problem]
    if options.json:
        namespaces = [_identity_json(entry) for entry in entries]
        print_json("kvshelf.identities/1", {"root": str(root), "namespaces": namespaces})
    elif entries:
        rows = [("FOLDER", "MODEL", "ENGINE", "DIGEST"), *map(_identity_texts, entries)]
        print("\n".join(table_lines(rows)))
        for entry in findings:
            print(f"finding: {safe(entry.folder)}/namespace.json: {safe(entry.problem)}")
    else:
        print(f"no namespaces in {safe(str(root))}")
    return Exit.FINDINGS if findings else Exit.FINE


def _identity_json(entry: NamespaceEntry) -> dict[str, Any]:
    identity = entry.identity
    return {
        "folder": entry.folder,
        "model": identity and identity.model,
        "engine": identity and identity.fields.get("engine"),
        "digest": identity and identity.digest.hex(),
        "identity": identity and identity.to_json()["identity"],
        "problem": entry.problem or None,
    }


def _identity_texts(entry: NamespaceEntry) -> tuple[str, ...]:
    if entry.identity is None:
        return (safe(entry.folder), "(damaged)", "", "")
    engine = str(entry.identity.fields.get("engine", ""))
    texts = (entry.folder, entry.identity.model, engine, entry.identity.digest12)
    return tuple(cut(safe(text)) for text in texts)
