"""The three figures."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.ordered_derivatives.market import SERIES
from experiments.ordered_derivatives.plant import RULES

COLORS = {"one step": "C1", "simulation": "C0"}


def free_run(path: Path, found: dict[str, Any]) -> None:
    """What the plant does with a new input, and the models of the first seed left to themselves."""
    noises = found["noises"]
    figure = Figure(figsize=(9, 2.8 * len(noises) + 0.5), dpi=130, layout="constrained")
    rows = figure.subplots(len(noises), 2, squeeze=False, sharex=True)
    plant = np.array(found["plant"])
    for k, ((left, right), noise) in enumerate(zip(rows, noises, strict=True)):
        left.plot(plant, color="0.6", linewidth=4, label="plant")
        for name, color in COLORS.items():
            path_of = np.array(found[name]["path"][k])
            nrmse = np.array(found[name]["nrmse"][k])
            left.plot(path_of, color=color, linewidth=1, label=f"trained {name}")
            label = f"NRMSE {np.median(nrmse):.3f}"
            right.plot(path_of - plant, color=color, linewidth=1, label=label)
        left.set_title(f"Noise {noise:g} in training: free run, first seed", fontsize="medium")
        right.set_title("Model minus plant; NRMSE: median of seeds", fontsize="medium")
        right.margins(y=0.2)
        right.legend(fontsize="x-small", loc="upper right", ncols=2)
        for axes in (left, right):
            axes.grid(alpha=0.3)
    for axes in rows[-1]:
        axes.set_xlabel("step")
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path)


def sensitivity(path: Path, found: dict[str, Any]) -> None:
    """The ranking of the inputs, and when each series counts."""
    figure = Figure(figsize=(10, 5), dpi=130, layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=(3, 2))
    names, values = zip(*reversed(found["elasticity"]), strict=True)
    bars.barh(names, values, color=["C0" if v > 0 else "C3" for v in values])
    bars.axvline(0, color="k", linewidth=0.8)
    bars.set(title="One percent more of each input", xlabel="percent more spent in all periods")
    for k, (name, values) in enumerate(zip(SERIES, found["by_period"], strict=True)):
        periods = range(1, len(values) + 1)
        lines.plot(periods, np.array(values) / found["target"], "o-", color=f"C{k}", label=name)
    lines.set(title="... in one period alone", xlabel="period", ylabel="percent more spent")
    lines.set_xticks(range(1, len(found["by_period"][0]) + 1, 3))
    lines.axhline(0, color="k", linewidth=0.8)
    lines.legend(fontsize="small")
    for axes in (bars, lines):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def extensions(path: Path, price: dict[str, Any], rates: dict[str, Any]) -> None:
    """Simultaneous equations, and the learning curves of each rule."""
    figure = Figure(figsize=(10, 4.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(price["iterations"], np.maximum(price["gap"], 1e-17), "o-")
    left.set(
        title="Gradient through the iterations of the price",
        xlabel="iterations in each period",
        ylabel="relative distance from the implicit gradient",
    )
    left.set_xticks(price["iterations"], [str(n) for n in price["iterations"]])
    left.minorticks_off()
    ceiling = 10 * np.array(rates["fixed"]["curve"])[:, 0].max()
    for k, name in enumerate(RULES):
        for j, curve in enumerate(np.array(rates[name]["curve"], float)):
            label = name if j == 0 else None
            shown = np.where(curve < ceiling, curve, np.nan)
            right.semilogy(shown, color=f"C{k}", linewidth=0.9, alpha=0.8, label=label)
    right.set(
        title="Identification, a line for each first rate",
        xlabel="updates",
        ylabel="mean squared error (median of seeds)",
        ylim=(None, 30 * ceiling),  # room for the legend
    )
    right.legend(fontsize="small", title="factor of the rate", ncols=2, loc="upper right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path)
