"""The table of docs/explain/reliability.md, from the results of the last full runs.

    fuzz.json       make fuzz FUZZ_SECONDS=N
    coverage.json   make coverage
    schedules.json  python benchmarks/bench_schedules.py shelves, and engine
    stress.json     python -m tests.stress --seconds N
    crashes.json    python benchmarks/bench_crashes.py

`make reliability` runs all of them, for hours, and writes the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def load(name: str) -> dict[str, Any]:
    """A result, or nothing if that run was not made."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def reliability_table() -> str:
    rows = [*_schedules(), *_crashes(), *_stress(), *_fuzz(), *_coverage()]
    lines = ["| what | figure | command |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | {command} |" for what, figure, command in rows]
    return "\n".join(lines) + "\n"


def _schedules() -> list[tuple[str, str, str]]:
    runs = [run for name, run in load("schedules").items() if name.startswith("shelves")]
    engine = load("schedules").get("engine")
    rows = []
    if runs:
        count, faults, jobs = (
            sum(run[key] for run in runs) for key in ("schedules", "faults", "jobs")
        )
        verified = sum(run["verified_bytes"] for run in runs) / 1e9
        failed = sum(len(run["failed"]) for run in runs)
        rows.append(
            (
                "random fault schedules",
                f"{count:,}; {faults:,} faults in {jobs:,} jobs, {verified:.1f} GB verified; "
                f"{failed} failed",
                "`python benchmarks/bench_schedules.py shelves`",
            )
        )
    if engine:
        rows.append(
            (
                "a vLLM engine under them",
                f"{engine['requests']} requests, {engine['faults']} faults, "
                f"{engine['seconds']:.0f} s; {len(engine['wrong'])} wrong answers",
                "`python benchmarks/bench_schedules.py engine`",
            )
        )
    return rows


def _crashes() -> list[tuple[str, str, str]]:
    found = load("crashes")
    return [(row["what"], row["figure"], f"`{row['command']}`") for row in found.get("rows", ())]


def _stress() -> list[tuple[str, str, str]]:
    runs = load("stress").get("runs", {})
    rows = []
    for name, run in runs.items():
        rows.append(
            (
                f"8 processes, {name}",
                f"{run['seconds'] / 60:.1f} min, {run['operations']:,} operations, "
                f"{run['bytes_verified'] / 1e9:.1f} GB verified, "
                f"{run['evicted']:,} chunks evicted, {run['scrubs']:,} scrubs, "
                f"{run['kills']} killed; {run['damaged']} damaged, {run['io_errors']} I/O errors",
                f"`{run['command']}`",
            )
        )
    if runs:
        hours = sum(run["seconds"] for run in runs.values()) / 3600
        verified = sum(run["bytes_verified"] for run in runs.values()) / 1e9
        kills = sum(run["kills"] for run in runs.values())
        rows.append(("stress in all", f"{hours:.1f} h, {verified:.0f} GB, {kills} killed", ""))
    return rows


def _fuzz() -> list[tuple[str, str, str]]:
    found = load("fuzz")
    rows = []
    for row in found.get("targets", ()):
        figure = f"{row['runs']:,} runs, {row['edges']:,} edges in {found['seconds']:.0f} s"
        command = f"`{found['command']}`"
        rows.append((f"fuzzing: {row['target']}, {row['driver']} driver", figure, command))
    if rows:
        runs = sum(row["runs"] for row in found["targets"])
        failed = sum(not row["fine"] for row in found["targets"])
        rows.append(("fuzzing in all", f"{runs:,} runs, {failed} failed", ""))
    return rows


def _coverage() -> list[tuple[str, str, str]]:
    return [
        (
            f"lines of {name} that the tests run",
            f"{part['percent']}% of {part['lines']:,}; [the others](../dev/coverage.md)",
            "`make coverage`",
        )
        for name, part in load("coverage").get("parts", {}).items()
    ]


def coverage_table() -> str:
    """The lines that no test runs, for docs/dev/coverage.md."""
    found = load("coverage")
    lines = [f"Measured on {found['date']}: {found['command']}.", ""] if found else []
    for name, part in found.get("parts", {}).items():
        lines.append(f"- {name}: {part['percent']}% of {part['lines']:,} lines run.")
        needing = [f"`{file}`" for file, each in part["files"].items() if "needs" in each]
        if needing:
            lines[-1] += (
                f" Without {', '.join(sorted(needing))}: {part['percent_without_needs']}% of "
                f"{part['lines_without_needs']:,}."
            )
    lines += ["", "| file | run | lines that no test runs | needs |", "|---|---|---|---|"]
    for part in found.get("parts", {}).values():
        lines += [
            f"| {name} | {file['percent']}% | {', '.join(file['not_run'])} "
            f"| {file.get('needs', '')} |"
            for name, file in sorted(part["files"].items())
            if file["not_run"]
        ]
    return "\n".join(lines) + "\n"
