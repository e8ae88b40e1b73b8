"""Writes the tables of some pages of docs/ from what they describe.

    python scripts/make_docs.py           write them
    python scripts/make_docs.py --check   exit status 1 if one of them is stale

A table stands between two marks; everything else on a page is written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the matrix is the tests'

from scripts.generated import keep
from scripts.reliability import coverage_table, reliability_table
from tests.faults.table import matrix_table

from kvshelf.cli.documents import documents_table
from kvshelf.config import settings_table
from kvshelf.metrics import EVICT_METRICS, metrics_table

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN = "<!-- made by scripts/make_docs.py: change the code instead -->\n"
END = "<!-- end -->\n"
TABLES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_table,
    "dev/coverage.md": coverage_table,
    "dev/faults.md": matrix_table,
    "reference/exit-codes-and-json.md": documents_table,
    "explain/reliability.md": reliability_table,
    "explain/eviction.md": lambda: metrics_table(EVICT_METRICS),
    "reference/metrics.md": metrics_table,
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
