"""The figures."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.gradient_flow.clipping import SOLVED
from experiments.gradient_flow.config import Config

SMALLEST = 1e-12  # where the axis of a norm ends
DISTANCE = "T - t, steps back from the loss"
NORM = r"$\|\partial L/\partial h_t\|$"


def band(axes: Axes, x: Any, low_mid_high: Any, label: str, color: str, style: str = "-") -> None:
    """A median and the quartiles around it."""
    low, mid, high = np.asarray(low_mid_high)
    axes.plot(x, mid, style, color=color, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def over_distance(
    axes: Axes, title: str, smallest: float | None = None, legend: Any = "lower left"
) -> None:
    """What all panels over T - t have."""
    axes.set(title=title, xlabel=DISTANCE, ylabel=NORM, yscale="log")
    axes.set_ylim(bottom=smallest)
    axes.grid(alpha=0.3)
    axes.legend(loc=legend, fontsize=8)


def flow_figure(report: dict[str, Any], path: Path) -> None:
    """dL/dh_t over the distance to the loss: recurrences, activations, cells, initialisations."""
    figure = Figure(figsize=(14, 8.5), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    for axes, name in zip(panels, ("scalar", "matrix"), strict=False):
        for color, (w, curves) in zip(
            ("C0", "C2", "C3"), report["recurrences"][name].items(), strict=True
        ):
            size = "|w|" if name == "scalar" else "radius of W"
            band(axes, np.arange(len(curves["measured"][0])), curves["measured"], "", color)
            axes.lines[-1].set_label(f"{size} = {w}: measured")
            form = curves["closed form"][1]
            axes.plot(form, "k:", label="closed form" if color == "C3" else None)
    over_distance(panels[0], "A linear unit: $w^{T-t}$")
    over_distance(panels[1], "A linear network: $W^{T-t}q$, W Gaussian")
    titles = {
        "activations": "Activation (W orthogonal)",
        "cells": "Cell (LSTM: at its memory c)",
        "initialisations": "Initialisation of W",
    }
    for axes, (name, title) in zip(panels[2:], titles.items(), strict=False):
        number = -1
        for label, curve in report[name].items():
            gates = label.startswith("its")
            number += not gates
            x = np.arange(len(curve[0]))
            band(axes, x[1:], np.array(curve)[:, 1:], label, f"C{number}", "--" if gates else "-")
        over_distance(
            axes, title, SMALLEST, "upper right" if name == "activations" else "lower left"
        )
    updates = report["updates"]
    for color, name in (("C3", "unclipped"), ("C0", "clipped")):
        band(panels[5], updates["gains"], updates[name], name, color)
    panels[5].set(
        title="Clipping bounds the update (tanh network)",
        xlabel="gain of W (orthogonal, times the gain)",
        ylabel="length of one update of the weights",
        xscale="log",
        yscale="log",
    )
    panels[5].xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 4]))
    panels[5].xaxis.set_major_formatter("{x:g}")
    panels[5].xaxis.set_minor_locator(NullLocator())
    panels[5].grid(alpha=0.3)
    panels[5].legend(loc="upper left")
    figure.suptitle("Where the gradient of a loss at the last step goes (median and quartiles)")
    figure.savefig(path, dpi=130)


def bound_figure(report: dict[str, Any], path: Path) -> None:
    """What happens below and above sigma_max gamma = 1."""
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    bound = report["bound"]
    x = np.array(bound["scales"])
    panels = figure.subplots(1, 3, sharey=True)
    for axes, name, gamma in zip(
        panels, ("sigmoid", "tanh", "ReLU"), ("1/4", "1", "1"), strict=True
    ):
        axes.axvspan(x[0], 1, color="C0", alpha=0.08, label="must vanish")
        axes.plot(x, x, "k--", label=r"bound of a step, $\sigma_{max}\gamma$")
        axes.plot(x, bound[name]["largest step"], "C3.", label="largest step, all networks")
        band(axes, x, bound[name]["mean"], "mean over all steps", "C0")
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.set(
            title=rf"{name} ($\gamma$ = {gamma})",
            xlabel=r"$\sigma_{max}(W)\,\gamma$",
            xscale="log",
            yscale="log",
        )
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(r"growth of $\|\partial L/\partial h_t\|$ in one step back")
    panels[0].legend(loc="upper left", fontsize=8)
    figure.suptitle(
        "Below 1 the gradient must vanish; above 1 it may explode, or not (median, quartiles)"
    )
    figure.savefig(path, dpi=130)


def clipping_figure(report: dict[str, Any], config: Config, path: Path) -> None:
    """The error surface of one unit and a descent on it, clipped and not."""
    surface = report["surface"]
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    w, b = np.array(surface["w"]), np.array(surface["b"])
    error = np.maximum(surface["error"], 1e-5)
    drawn = left.pcolormesh(w, b, error, norm=LogNorm(), cmap="viridis", rasterized=True)
    figure.colorbar(drawn, ax=left, label=r"error $(\sigma(x_{50}) - 0.7)^2$")
    for name, color, size in (("unclipped", "C3", 9), ("clipped", "white", 3)):
        points = np.array(surface[name]["path"])
        left.plot(*points.T, ".-", color=color, markersize=size, linewidth=size / 3, label=name)
        label = name if name == "unclipped" else f"{name} at {config.threshold:g}"
        right.semilogy(
            surface[name]["errors"], color="C3" if name == "unclipped" else "C0", label=label
        )
    left.plot(*surface["unclipped"]["path"][0], "o", color="orange", label="start")
    left.set(
        title=r"$x_t = w\,\sigma(x_{t-1}) + b$, $x_0 = 0.5$, and two descents",
        xlabel="w",
        ylabel="b",
        xlim=(w[0], w[-1]),
        ylim=(b[0], b[-1]),
    )
    left.legend(loc="lower left", facecolor="lightgray")
    right.axhline(SOLVED, color="gray", linewidth=0.8)
    right.set(
        title=f"The same descents, step size {config.learning_rate:g}",
        xlabel="updates",
        ylabel="error",
    )
    right.grid(alpha=0.3)
    right.legend(loc="upper right")
    figure.savefig(path, dpi=130)
