"""The two figures."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.checkpointing.measuring import FORWARD, SAVED, TIME, Row


def tradeoff(path: Path, found: dict[str, Any], title: str) -> None:
    """Measured: time against memory. Counted: forward steps against memory."""
    figure = Figure(figsize=(11, 4.8), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in found["tradeoff"] if row["name"] != FORWARD]
    kinds = {"segments": ("C0", "o-"), "budget": ("C1", "s"), "all steps": ("k", "D")}
    for kind, (color, style) in kinds.items():
        mine = [row for row in rows if row["name"].startswith(kind)]
        x, y = ([f(row) for row in mine] for f in (_percent, lambda row: row["against_plain"]))
        left.plot(x, y, style, color=color, label={"all steps": None}.get(kind, f"{kind} of"))
        for row in mine:
            text = row["name"].removeprefix(f"{kind} of ")
            offset, ha = _beside(kind, text, row["T"])
            at = (_percent(row), row["against_plain"])
            options = {"textcoords": "offset points", "fontsize": "x-small", "color": color}
            left.annotate(text, at, offset, ha=ha, **options)
    left.plot(100 * (1 - SAVED), TIME, "r*", markersize=12, label="published, T = 1000")
    left.set(title=title, ylabel="time over that of the plain scan", ylim=(0, 1.6), xlim=(4, 130))
    memory = 100 * np.array(found["counts"]["memory"])
    right.plot(memory, found["counts"]["hidden"], "C2", label="best with hidden states (BPTT-HSM)")
    right.plot(memory, found["counts"]["mixed"], "C3", label="best with internal states too")
    segments = 100 * np.array(found["counts"]["segments"])
    right.plot(segments[:, 0], segments[:, 1] / 100, "C0o", label="segments")
    right.plot(100, 1, "kD", label="all steps")
    right.set(title="Counted", ylabel="forward steps over T", ylim=(0.8, 6))
    for axes in (left, right):
        axes.set(xlabel="memory, percent of the plain scan", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    figure.savefig(path)


def _beside(kind: str, text: str, T: int) -> tuple[tuple[float, float], str]:
    """Where a label gets in the way of no other: short segments crowd at the left."""
    if kind == "budget":
        return (7, -3), "left"
    if kind == "all steps" or int(text) ** 2 < T:
        return (-6, 4), "right"
    if int(text) ** 2 < 4 * T:
        return ((-2, -12), "right") if int(text) ** 2 < 1.5 * T else ((2, -12), "left")
    return (0, 7), "center"


def _percent(row: Row) -> float:
    return 100 * (1 - row["saved"])


def growth(path: Path, rows: list[Row], title: str) -> None:
    """Bytes, and time, against T."""
    figure = Figure(figsize=(10, 4.5), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        T = [row["T"] for row in mine]
        left.loglog(T, [row["bytes"] / 2**20 for row in mine], "o-", label=name)
        right.plot(T, [row["against_plain"] for row in mine], "o-", label=name)
    left.set(title=title, ylabel="MiB")
    right.set(title="Time", ylabel="over that of the plain scan", xscale="log")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("steps T")
        axes.set_xticks(T, [str(t) for t in T])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    figure.savefig(path)
