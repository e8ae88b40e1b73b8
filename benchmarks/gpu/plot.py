"""Draw first-token.json and transfer-8b.json of a folder as PNG beside them.

python benchmarks/gpu/plot.py benchmarks/results/gpu
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, GRAY, RED = "#3565a8", "#9a9a9a", "#b3543e"
LABEL: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
NUMBER: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}


# Arm of first_token.py, what it is called, color; the first is drawn from its cold runs.
ARMS = (
    ("compute", "computed", GRAY),
    ("fs-tmpfs", "vLLM's fs tier, memory", RED),
    ("kvshelf-ext4", "kvshelf, ext4 page cache", BLUE),
)


def first_token(directory: Path) -> None:
    """Lines of time to first token against prompt length, with the limit, as measured together."""
    result: dict[str, Any] = json.loads((directory / "first-token.json").read_text())
    arms = result["8b"]
    figure, axes = plt.subplots(figsize=(7, 4))
    for arm, name, color in ARMS:
        rows = arms[arm]["single"]
        lengths = [int(n) for n in rows]
        values = [
            row["cold_ms"] if arm == "compute" else statistics.median(row["hit_ms"][1:])
            for row in rows.values()
        ]
        axes.plot(lengths, values, marker="o", color=color)
        axes.annotate(name, (lengths[-1], values[-1]), (6, 0), **LABEL, color=color)
        for length, value in zip(lengths, values, strict=True):
            axes.annotate(f"{value:.0f}", (length, value), (0, 6), **NUMBER)
    rows = arms["kvshelf-ext4"]["single"]
    limits = [row["limit_ms"] for row in rows.values()]
    axes.plot([int(n) for n in rows], limits, linestyle="--", color="black", linewidth=1)
    axes.annotate("limit", (int(list(rows)[1]), limits[1]), (0, -12), **NUMBER)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([int(n) for n in rows], [f"{int(n):,}" for n in rows])
    axes.set_xlim(3500, 340_000)
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("time to first token, ms")
    axes.set_title(f"vLLM {result['vllm']}, 8B shape, one {result['card']}, {result['date']}")
    save(figure, axes, directory / "first-token.png")


def transfers(directory: Path) -> None:
    """Bars of GB/s from transfer-8b.json, in the order measured."""
    result = json.loads((directory / "transfer-8b.json").read_text())
    medians = result["GB/s, medians"]
    names = [n for n in medians if "O_DIRECT" not in n and "cold" not in n and "cache" not in n]
    figure, axes = plt.subplots(figsize=(7, 3.6))
    colors = [GRAY if n.startswith(("plain", "pinned")) else BLUE for n in names]
    bars = axes.barh(names, [medians[n] for n in names], color=colors)
    axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.invert_yaxis()
    axes.set_xlabel("GB/s (12 threads, page cache on ext4)")
    axes.set_title(result["card"])
    save(figure, axes, directory / "transfers.png")


def save(figure: Any, axes: Any, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    directory = Path(sys.argv[1])
    first_token(directory)
    transfers(directory)


if __name__ == "__main__":
    main()
