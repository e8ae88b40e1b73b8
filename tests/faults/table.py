"""The fault matrix as a Markdown table, for docs/dev/faults.md. Pure."""

from __future__ import annotations

import itertools

from .matrix import FAULTS, TIMES, Cell, Outcome, every_cell

_CONDITIONS = {
    "": "",
    "damaged": "of a damaged file, to remove it",
    "no temp folder": "when it is absent",
    "folder": "when its folder is there",
    "write error": "after a write failed",
    "no renameat2": "where there is no renameat2",
    "no links": "where there are no links either",
}
_STATUSES = {
    "OK": "succeeds",
    "NOT_FOUND": "a miss",
    "CORRUPT": "CORRUPT: a miss",
    "FOREIGN": "FOREIGN: a miss",
    "IO_ERROR": "fails (IO_ERROR)",
    "TIMED_OUT": "fails at its deadline (TIMED_OUT)",
    "NOT_RENEWED": "the time is not renewed",
}


def describe(cell: Cell, outcome: Outcome) -> str:
    """What a reader of the table is told."""
    store = cell.job.startswith("store")
    missing = store and outcome.status == "NOT_FOUND"
    words = ["fails (NOT_FOUND)" if missing else _STATUSES[outcome.status]]
    if outcome.retried:
        words.append("after another try" if outcome.status == "OK" else "after other tries")
    if outcome.removed:
        words.append("the file is removed")
    if store and outcome.status != "OK" and outcome.later == "OK":
        words.append("the file may be there, whole")
    elif store and outcome.status == "OK" and outcome.later == "NOT_FOUND":
        words.append("whoever took the name has stored it")
    elif outcome.later in ("CORRUPT", "FOREIGN"):
        words.append("the next load finds out and removes the file")
    if outcome.temp_left:
        words.append("a temp file stays for a cleaner")
    return ", ".join(words)


def call_of(cell: Cell) -> str:
    condition = _CONDITIONS[cell.condition]
    return f"{cell.operation}, {cell.target}{f' ({condition})' if condition else ''}"


def matrix_table() -> str:
    """A row for each job, call and outcome; faults with one outcome share a row."""
    rows: dict[tuple[str, str, str], dict[str, set[str]]] = {}
    for cell, outcome in every_cell():
        if cell.chunks == "many":  # the same, of one chunk among others
            continue
        row = (cell.job, call_of(cell), describe(cell, outcome))
        if ("store", *row[1:]) in rows and cell.job == "store-through":  # the same
            continue
        rows.setdefault(row, {}).setdefault(cell.fault, set()).add(cell.times)
    lines = ["| job | call | fault | outcome |", "|---|---|---|---|"]
    for (job, call), group in itertools.groupby(rows, lambda row: row[:2]):
        times_of: dict[str, set[str]] = {}  # of each fault: when it happens once or always
        outcomes = list(group)
        for row in outcomes:
            for fault, times in rows[row].items():
                times_of.setdefault(fault, set()).update(times)
        for row in outcomes:
            names = [
                fault
                if rows[row][fault] == times_of[fault]
                else f"{fault} {_only(rows[row][fault])}"
                for fault in FAULTS
                if fault in rows[row]
            ]
            lines.append(f"| {job} | {call} | {', '.join(names)} | {row[2]} |")
    return "\n".join(lines) + "\n"


def _only(times: set[str]) -> str:
    return "(" + ", ".join(each for each in TIMES if each in times) + ")"
