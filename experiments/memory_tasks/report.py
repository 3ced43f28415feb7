"""What a run says and draws."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.memory_tasks.lstm_1997 import PROBLEMS

Row: TypeAlias = dict[str, Any]


def outcome(row: Row) -> str:
    """Seeds that learned, and the median of their updates; if none did, the updates tried."""
    solved = [n for n in row["solved_at"] if n]
    share = f"{len(solved)}/{len(row['solved_at'])}"
    return f"{share} {np.median(solved):g}" if solved else f"{share} >{row['updates']}"


def verdict(row: Row) -> str:
    """Whether a published success was seen again."""
    failed = row["solved_at"].count(0)
    if not failed:
        return "reproduced"
    return f"not reproduced within {row['updates']} updates by {failed} of {len(row['solved_at'])}"


def unique(rows: list[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def success_text(rows: list[Row]) -> str:
    """A table for each task: kinds down, lengths across."""
    lines = ["Seeds that learned (fewer than 1 % of new sequences wrong), and their median updates"]
    for task in unique(rows, "task"):
        of_task = [row for row in rows if row["task"] == task]
        lines.append(f"\n{task:<34}" + "".join(f"{n:>12}" for n in unique(of_task, "length")))
        for kind in unique(of_task, "kind"):
            cells = (outcome(row) for row in of_task if row["kind"] == kind)
            lines.append(f"  {kind:<32}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def temporal_order_text(rows: list[Row]) -> str:
    """A line for each length and remedy."""
    lines = [
        "Temporal order, 50 tanh units, SGD 0.01: updates until fewer than 1 % of 10,000 wrong",
        "published: clipped and regularised, 5 of 5 seeds learn one net for all lengths 50 to 200,",
        "within 5,000,000 updates; clipping alone fails on long sequences",
    ]
    for row in rows:
        times = ", ".join(map(str, sorted(n for n in row["solved_at"] if n)))
        lines.append(f"T={row['length']:<4} {row['kind']:<24} {outcome(row):<10} [{times}]")
        if row["kind"] != "clipped":
            lines.append(f"       {verdict(row)}")
    return "\n".join(lines)


def lstm_1997_text(rows: list[Row]) -> str:
    """A line for each problem and gradient."""
    lines = ["The LSTM of 1997: sequences until it had learned, wrong ones of 2560 after"]
    for row in rows:
        solved = [n for n in row["solved_at"] if n]
        mean = f"{np.mean(solved):.0f}" if solved else "-"
        wrong = [w for w, n in zip(row["wrong_of_2560"], row["solved_at"], strict=True) if n]
        lines.append(
            f"{row['problem']}, T={row['length']}, {row['gradient']} gradient: "
            f"{len(solved)} of {len(row['solved_at'])} trials, mean {mean} sequences, "
            f"wrong {f'{np.mean(wrong):.1f}' if wrong else '-'} of 2560"
        )
        if row["gradient"] == "truncated" and row["length"] == 100:
            published = PROBLEMS[row["problem"]].published
            lines.append(f"  published: {published[0]} sequences, {published[1]}; {verdict(row)}")
    return "\n".join(lines)


def success_plot(rows: list[Row], path: Path) -> None:
    """A panel for each task: the share of seeds that learned, and their median updates."""
    tasks, kinds = unique(rows, "task"), unique(rows, "kind")
    columns = min(3, len(tasks))
    height, width = math.ceil(len(tasks) / columns), 1.0 * len(unique(rows, "length")) + 0.4
    size = 2.8 + width * columns, (0.4 * len(kinds) + 0.7) * height + 0.5
    figure = Figure(figsize=size, layout="constrained")
    panels = np.ravel(figure.subplots(height, columns, sharey=True))
    for axes in panels[len(tasks) :]:
        axes.remove()
    for axes, task in zip(panels, tasks, strict=False):
        of_task = [row for row in rows if row["task"] == task]
        lengths = unique(of_task, "length")
        share = np.full((len(kinds), len(lengths)), np.nan)
        for row in of_task:
            y, x = kinds.index(row["kind"]), lengths.index(row["length"])
            share[y, x] = np.mean(np.array(row["solved_at"]) > 0)
            color = "white" if share[y, x] > 0.6 else "black"
            axes.text(x, y, outcome(row), ha="center", va="center", color=color, fontsize=8)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
        axes.set_xticks(range(len(lengths)), map(str, lengths))
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set(title="$a^n b^n$" if task == "anbn" else task.replace("_", " "), xlabel="length")
    figure.suptitle("Seeds that learned, and their median updates")
    figure.savefig(path, dpi=150)


def dots(rows: list[Row], names: list[str], title: str, unit: str) -> tuple[Figure, Axes]:
    """A line for each row, a dot for each seed; open where it did not learn."""
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        solved = [n for n in row["solved_at"] if n]
        failed = [row["updates"]] * row["solved_at"].count(0)
        axes.plot(solved, [y] * len(solved), "o", color="C0", alpha=0.6)
        spread = y + 0.08 * (np.arange(len(failed)) - (len(failed) - 1) / 2)
        axes.plot(failed, spread, ">", color="C3", markerfacecolor="none")
    axes.plot([], [], "o", color="C0", alpha=0.6, label="a seed learned")
    axes.plot([], [], ">", color="C3", markerfacecolor="none", label="not within the budget")
    axes.set_yticks(range(len(rows)), names)
    axes.set(title=title, xlabel=unit, ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3, axis="x")
    return figure, axes


def temporal_order_plot(rows: list[Row], path: Path) -> None:
    """Updates until success of each seed."""
    names = [f"T = {row['length']}, {row['kind']}" for row in rows]
    figure, axes = dots(rows, names, "Temporal order, 50 tanh units, SGD", "Updates")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)


def lstm_1997_plot(rows: list[Row], path: Path) -> None:
    """Sequences until success of each seed, and the published mean."""
    names = [f"{r['problem']}, T = {r['length']}, {r['gradient']} gradient" for r in rows]
    figure, axes = dots(rows, names, "The LSTM of 1997", "Sequences")
    for y, row in enumerate(rows):
        if row["length"] == 100:
            published = PROBLEMS[row["problem"]].published[0]
            axes.plot([published, published], [y - 0.3, y + 0.3], "k-")
    axes.plot([], [], "k-", label="published mean of 10")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


TEXT: dict[str, Callable[[list[Row]], str]] = {
    "success": success_text,
    "temporal_order": temporal_order_text,
    "lstm_1997": lstm_1997_text,
}
PLOT: dict[str, Callable[[list[Row], Path], None]] = {
    "success": success_plot,
    "temporal_order": temporal_order_plot,
    "lstm_1997": lstm_1997_plot,
}
