"""The figures, one for each part; stream and sweep share one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.gradient_algorithms import balancing, exactness, learning, variance
from experiments.gradient_algorithms import bias as truncation

SHADES = {  # of the exactness matrix, in the order of `_shade`
    "refused, or does not settle": "0.93",
    "exact: relative error": "#b7e1b1",
    "unbiased: largest z of the mean, over all params": "#c6dbef",
    "biased: relative error (cosine)": "#fde0a8",
    "not what the register says": "#f4a582",
}


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def draw(folder: Path, found: dict[str, Any]) -> list[str]:
    """Writes the figures of the parts that were run; returns their names."""
    written = []
    for name, plot in FIGURES.items():
        parts = [found[part] for part in name.split("+") if part in found]
        if parts:
            file = "learning.png" if "+" in name else f"{name}.png"
            given = found if "+" in name else parts[0]
            plot(given).savefig(folder / file)
            written.append(file)
    return written


def _balancing(found: dict[str, Any]) -> Figure:
    figure = _figure(12, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    d = np.asarray(found["influence"])
    k = np.arange(1, len(d) + 1)
    left.plot(k, d, label="after k steps")
    left.plot(k, np.cumsum(d) / k, label="mean over steps 1 to k")
    for window in balancing.WINDOWS:
        well = found["runs"][f"truncated, {window}"]["verdict"] == "converges"
        left.plot(window, d[:window].mean(), "C2o" if well else "C3x")
    left.plot([], [], "C2o", label="a window of k: converges")
    left.plot([], [], "C3x", label="... does not")
    left.axhline(-6, color="k", linewidth=0.8, linestyle=":", label="the whole, -6")
    left.axhline(0, color="k", linewidth=0.8)
    left.set(title="Influence of theta on s_1", xlabel="k, steps", ylabel="d s_1 / d theta")
    left.legend(fontsize="small", loc="upper right")
    shown = [n for n in found["runs"] if n not in ("snap", "kf_rtrl", "ok", "forward_gradient")]
    for j, name in enumerate(shown):
        run = found["runs"][name]
        loss = np.asarray(run["loss"], float)
        label = {"rtrl": "rtrl (so snap, kf_rtrl, ok: exact here)"}.get(name, name)
        style = {"linestyle": "--"} if name.startswith("truncated") else {}
        middle = np.where(np.isfinite(loss), np.maximum(loss, 1e-35), np.nan)
        for i, line in enumerate(middle):
            right.semilogy(
                run["steps"], line, color=f"C{j}", linewidth=1, label=None if i else label, **style
            )
    right.set(
        title="Learning on an endless stream",
        xlabel="steps",
        ylabel="loss, mean over blocks of steps",
        ylim=(1e-32, 1e13),
    )
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _exactness(found: dict[str, Any]) -> Figure:
    columns = list(next(iter(found.values())))
    values = np.array([[_shade(row[c]) for c in columns] for row in found.values()])
    figure = _figure(max(7.0, 2.6 + 1.05 * len(columns)), 1.8 + 0.42 * len(found))
    axes = figure.subplots()
    axes.imshow(
        values, cmap=ListedColormap(list(SHADES.values())), vmin=-0.5, vmax=4.5, aspect="auto"
    )
    for i, row in enumerate(found.values()):
        for j, column in enumerate(columns):
            axes.text(j, i, exactness.text(row[column]), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), [c.replace("_", "\n", 1) for c in columns], fontsize=8)
    axes.set_yticks(range(len(found)), list(found), fontsize=9)
    axes.set_xticks(np.arange(len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(found)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.set_title("Gradients against backpropagation through time (float64, T = 6)")
    patches = [Patch(color=color, label=label) for label, color in SHADES.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _shade(entry: dict[str, Any]) -> int:
    if "why" in entry:
        return 0
    if not exactness.holds(entry):
        return 4
    if entry["kind"] == "unbiased":
        return 2
    return 1 if entry["error"] < exactness.EXACT else 3


def _variance(rows: list[dict[str, Any]]) -> Figure:
    shapes = list(dict.fromkeys((row["n"], row["T"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure = _figure(11, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    width = 0.6 / len(shapes)
    for j, shape in enumerate(shapes):
        mine = [row for row in rows if (row["n"], row["T"]) == shape]
        y = np.arange(len(names)) + (j - (len(shapes) - 1) / 2) * width
        std = np.array([row["std"] for row in mine])
        label = f"n = {shape[0]}, T = {shape[1]}"
        error = np.abs(std[:, [0, 2]] - std[:, 1:2]).T
        left.errorbar(std[:, 1], y, xerr=error, fmt="o", color=f"C{j}", label=label)
        earlier = [variance.EARLIER.get(name, {}).get(shape, np.nan) for name in names]
        note = "earlier prototype" if j == len(shapes) - 1 else None
        left.plot(earlier, y, "kx", label=note)
        right.plot([row["work"] for row in mine], y, "o", color=f"C{j}")
    left.set(title="One draw (median, quartiles of the nets)", xlabel="relative standard deviation")
    right.set(
        title="Work for a relative standard deviation of one",
        xlabel="variance x time, in times of the exact gradient",
    )
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    for axes in (left, right):
        axes.axvline(1, color="k", linewidth=0.8)
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _learning(found: dict[str, Any]) -> Figure:
    parts = [part for part in ("stream", "sweep") if part in found]
    figure = _figure(5.5 * len(parts), 4.2)
    panels = dict(zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True))
    if "stream" in panels:
        _stream(panels["stream"], found["stream"])
    if "sweep" in panels:
        _sweep(panels["sweep"], found["sweep"])
    for axes in panels.values():
        axes.axhline(learning.CHANCE, color="k", linewidth=0.8, linestyle=":", label="chance")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.set_ylim(top=20)  # room for the legend
        axes.legend(fontsize="small", loc="upper right", ncols=2)
    return figure


def _stream(axes: Any, runs: dict[str, Any]) -> None:
    for j, (name, run) in enumerate(runs.items()):
        losses = np.asarray(run["losses"])
        for i, line in enumerate(losses):
            steps = run["steps"] * np.arange(1, len(line) + 1) / len(line)
            label = None if i else f"{name}, {1e6 * run['seconds a step']:.1f} us a step"
            axes.plot(steps, line, color=f"C{j}", linewidth=1, label=label)
    axes.set(title="Endless stream, a line for each seed", xlabel="steps", ylabel="loss")


def _sweep(axes: Any, found: dict[str, Any]) -> None:
    losses = np.asarray(found["losses"])
    steps = found["steps"] * np.arange(1, losses.shape[1] + 1) / losses.shape[1]
    low, median, high = np.quantile(losses, [0.25, 0.5, 0.75], axis=0)
    axes.plot(steps, losses.T, color="0.75", linewidth=0.4)
    axes.fill_between(steps, low, high, color="C0", alpha=0.4, label="quartiles")
    axes.plot(steps, median, color="C0", label="median")
    axes.set(
        title=f"{len(losses)} seeds of {found['algorithm']} in one compiled call",
        xlabel="steps",
        ylabel="loss",
    )


def _cost(rows: list[dict[str, Any]]) -> Figure:
    figure = _figure(11.5, 5)
    left, right = figure.subplots(1, 2)
    for j, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        mine = [row for row in rows if row["name"] == name]
        n = [row["n"] for row in mine]
        style = {"marker": "osD^v"[j % 5], "color": f"C{j % 10}", "markersize": 4}
        style["linestyle"] = "--" if j >= 10 else "-"
        left.plot(n, [row["us a step"] for row in mine], label=name, **style)
        right.plot(n, [row["bytes"][0] / 1024 for row in mine], **style)
    left.set(title="Time, T = 64", xlabel="hidden units n", ylabel="us a step")
    right.set(title="Memory while it runs, T = 64", xlabel="hidden units n", ylabel="KiB")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(n, [str(i) for i in n])
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    return figure


def _bias(found: dict[str, Any]) -> Figure:
    figure = _figure(7.5, 4.4)
    axes = figure.subplots()
    k = found["lengths"]
    for j, kind in enumerate(("k1 = 1", "k1 = k2")):
        low, median, high = np.array(found[kind]).T
        axes.fill_between(k, low, high, color=f"C{j}", alpha=0.2)
        axes.plot(k, median, "o-", color=f"C{j}", label=f"truncated, {kind}: median, quartiles")
        earlier = truncation.EARLIER[kind]
        axes.plot(
            list(earlier), list(earlier.values()), "x", color=f"C{j}", label="earlier prototype"
        )
    for j, (name, (low, median, high)) in enumerate(found["others"].items(), 2):
        axes.axhspan(low, high, color=f"C{j}", alpha=0.12)
        axes.axhline(median, color=f"C{j}", linestyle="--", label=name)
    axes.set(
        title="What truncation leaves out of the gradient (tanh, T = 16)",
        xlabel="k2, steps back",
        ylabel="relative error of the gradient",
        ylim=(0, None),
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(k, [str(i) for i in k])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
    return figure


FIGURES: dict[str, Callable[[Any], Figure]] = {
    "balancing": _balancing,
    "exactness": _exactness,
    "variance": _variance,
    "stream+sweep": _learning,
    "cost": _cost,
    "bias": _bias,
}
