"""The answer of a plan as a picture. The only module that imports matplotlib, when called."""

from __future__ import annotations

from pathlib import Path

from kvshelf.plan.answer import GB, Plan


def plot_plan(plan: Plan, path: Path) -> None:
    """Write hit rate, saved GPU seconds and (with prices) gain against capacity, a line a policy.

    Raises:
        ImportError: matplotlib is not installed (``pip install 'kvshelf[plot]'``).
        OSError, ValueError: the file cannot be written, or its suffix is no picture's.
    """
    # Without pyplot: it keeps global state and may want a display.
    from matplotlib.figure import Figure  # noqa: PLC0415

    priced = plan.break_even is not None
    figure = Figure(figsize=(7, 8.5 if priced else 6), layout="constrained")
    axes = figure.subplots(3 if priced else 2, sharex=True)
    for policy in dict.fromkeys(row.policy for row in plan.rows):
        rows = [row for row in plan.rows if row.policy == policy]
        capacities = [row.capacity_bytes / GB for row in rows]
        lines = [
            [100 * row.hit_rate for row in rows],
            [row.saved_gpu_seconds for row in rows],
            [row.net_a_month for row in rows],
        ]
        for axis, values in zip(axes, lines, strict=False):
            axis.plot(capacities, values, marker="o", label=policy)
    labels = ("prompt tokens from the shelf, %", "GPU seconds saved", "gain a month")
    for axis, label in zip(axes, labels, strict=False):
        axis.set_ylabel(label)
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend()
    axes[0].set_title(f"{plan.requests:,} requests, {plan.prompt_tokens:,} prompt tokens")
    axes[-1].set_xscale("log")
    axes[-1].set_xlabel("capacity, GB")
    if priced:
        axes[-1].axhline(0, color="black", linewidth=0.8)
    figure.savefig(path)
