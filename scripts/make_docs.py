"""Writes the tables of some pages of docs/ from what they describe.

    python scripts/make_docs.py           write them
    python scripts/make_docs.py --check   exit status 1 if one of them is stale

A table stands between two marks; everything else on a page is written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the matrix is the tests'

from scripts.cases import field_table, sharing_table
from scripts.cli_page import commands_table
from scripts.generated import keep
from scripts.python_page import library_table
from scripts.reliability import coverage_table, reliability_table
from tests.faults.table import matrix_table

from kvshelf.config import Settings
from kvshelf.config.values import allowed_text
from kvshelf.metrics import EVICT_METRICS, METRICS, Kind, Metric

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN = "<!-- made by scripts/make_docs.py: change the code instead -->\n"
END = "<!-- end -->\n"


def settings_table() -> str:
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for spec in fields(Settings):
        kind, meta = str(spec.type), spec.metadata
        allowed = "true or false" if kind == "bool" else allowed_text(spec.name, kind, meta)
        lines.append(f"| `{spec.name}` | {meta['shown']} | {allowed} | {meta['help']} |")
    return "\n".join(lines) + "\n"


def metrics_table(metrics: Sequence[Metric] = METRICS) -> str:
    """Names as Prometheus shows them."""
    lines = ["| metric | kind | unit | labels | meaning |", "|---|---|---|---|---|"]
    for metric in metrics:
        name = f"{metric.name}_total" if metric.kind is Kind.COUNTER else metric.name
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        cells = (f"`{name}`", metric.kind.value, metric.unit, labels, metric.help)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# What most shelves set, if anything; the rest is for a measured reason.
COMMON = (
    "shared_storage_path",
    "threads_per_gpu",
    "max_staging_memory_gb",
    "lookup_threads",
    "admission",
    "min_hit_tokens",
    "evict",
    "evict_shelf_gb",
    "evict_percent",
    "audit_percent",
    "direct",
    "durability",
    "file_mode",
    "dir_mode",
    "auth_key_file",
    "identity_salt",
)


def settings_tables() -> str:
    """Common settings first, then the others."""
    head, rule, *rows = settings_table().splitlines()
    of = {row.split("`")[1]: row for row in rows}
    common = "\n".join([head, rule, *(of.pop(name) for name in COMMON)])
    advanced = "\n".join([head, rule, *of.values()])
    return f"## Common\n\n{common}\n\n## Advanced\n\n{advanced}\n"


def metrics_tables() -> str:
    """Those of engines, then those that only `kvshelf evict` has."""
    alone = tuple(metric for metric in EVICT_METRICS if metric not in METRICS)
    title = "On the port of `kvshelf evict --metrics-port`, beside those of eviction above:"
    return f"{metrics_table()}\n{title}\n\n{metrics_table(alone)}"


TABLES: dict[str, Callable[[], str]] = {
    "dev/coverage.md": coverage_table,
    "dev/faults.md": matrix_table,
    "dev/field-cases.md": field_table,
    "explain/reliability.md": reliability_table,
    "howto/share-and-why-not.md": sharing_table,
    "reference/cli.md": commands_table,
    "reference/metrics.md": metrics_tables,
    "reference/python.md": library_table,
    "reference/settings.md": settings_tables,
}


def with_table(page: str, table: str) -> str:
    """The page with its table replaced.

    Raises:
        ValueError: the page has not exactly one pair of marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError("a page needs one pair of marks for its table")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(arguments: list[str]) -> int:
    pages = {DOCS / name: table for name, table in TABLES.items()}
    made = {
        path: with_table(path.read_text(encoding="utf-8"), table()) for path, table in pages.items()
    }
    return keep(made, arguments, "make_docs.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
