"""Draw what benchmarks/gpu measured: DIR/engine.json and DIR/transfer-8b.json as PNG beside them.

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

BLUE, GREY, RED = "#3565a8", "#9a9a9a", "#b3543e"


def first_token(directory: Path) -> None:
    """Bars of time to first token by prompt length: computed, vLLM's tier, kvshelf."""
    arms: dict[str, Any] = json.loads((directory / "engine.json").read_text())["one run"]
    lengths = list(arms["kvshelf"]["single"])
    rows = {
        "computed": [statistics.median(arms["kvshelf"]["single"][n]["cold_ms"]) for n in lengths],
        "vLLM's fs tier, ext4": [
            statistics.median(arms["fs tier"]["single"][n]["again_ms"]) for n in lengths
        ],
        "kvshelf, ext4 page cache": [
            statistics.median(arms["kvshelf"]["single"][n]["again_ms"]) for n in lengths
        ],
    }
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for i, ((name, values), colour) in enumerate(zip(rows.items(), (GREY, RED, BLUE), strict=True)):
        places = [x + (i - 1) * 0.27 for x in range(len(lengths))]
        bars = axes.bar(places, values, 0.25, label=name, color=colour)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("first token, ms")
    axes.set_xticks(range(len(lengths)), [f"{int(n):,} tokens" for n in lengths])
    axes.set_title("vLLM 0.26, 8B shape, one H100")
    axes.legend(frameon=False)
    save(figure, axes, directory / "first-token.png")


def transfers(directory: Path) -> None:
    """Bars of GB/s from transfer-8b.json, in the order measured."""
    result = json.loads((directory / "transfer-8b.json").read_text())
    medians = result["GB/s, medians"]
    names = [n for n in medians if "O_DIRECT" not in n and "cold" not in n and "cache" not in n]
    figure, axes = plt.subplots(figsize=(7, 3.6))
    colours = [GREY if n.startswith(("plain", "pinned")) else BLUE for n in names]
    bars = axes.barh(names, [medians[n] for n in names], color=colours)
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
