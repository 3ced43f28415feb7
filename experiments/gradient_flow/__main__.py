"""The command line."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.gradient_flow import clipping, figures, flow
from experiments.gradient_flow.config import QUICK, Config
from experiments.harness import command

PROGRAM = "python -m experiments.gradient_flow"


PARTS = {
    "recurrences": flow.recurrences,
    "activations": flow.activations,
    "initialisations": flow.initialisations,
    "cells": flow.cells,
    "bound": flow.bound,
    "updates": clipping.updates,
    "surface": clipping.surface,
}


def study(config: Config) -> dict[str, Any]:
    """All the numbers, in float64."""
    report: dict[str, Any] = {"config": asdict(config), "jax": jax.__version__}
    with jax.enable_x64(True), tqdm(PARTS.items(), unit="part", dynamic_ncols=True) as bar:
        for name, part in bar:
            bar.set_postfix_str(name)
            report[name] = part(config, jax.random.key(config.seed))
    return report


def below(report: dict[str, Any]) -> tuple[float, float]:
    """Over all below the bound, the largest mean growth; over all, largest step over its bound."""
    scales = report["bound"]["scales"]
    curves = [report["bound"][name] for name in flow.ACTIVATIONS]
    vanishing = max(float(c["largest mean"][scales < 1].max()) for c in curves)
    tightness = max(float((c["largest step"] / scales).max()) for c in curves)
    return vanishing, tightness


def verdict(holds: bool) -> str:
    """The word for a claim."""
    return "reproduced" if holds else "NOT reproduced"


def growth(curve: np.ndarray) -> float:
    """The factor per step back of a median curve over its second half, away from the loss."""
    median = curve[1]
    half = len(median) // 2
    return float((median[-1] / median[half]) ** (1 / (len(median) - 1 - half)))


def summary(report: dict[str, Any], config: Config) -> str:
    """What a person reads at the end."""
    lines = ["Growth of dL/dh_t in one step back in time (median; 1 = preserved)"]
    gap = 0.0
    for name, kind in (("scalar", "linear unit, |w|"), ("matrix", "linear network, radius")):
        for w, curves in report["recurrences"][name].items():
            lines.append(f"  {kind + ' = ' + w:<34}{growth(curves['measured']):.3f}")
            gap = max(gap, curves["difference"])
    for part in ("activations", "initialisations", "cells"):
        for name, curve in report[part].items():
            lines.append(f"  {name:<34}{growth(curve):.3f}")
    vanishing, tightness = below(report)
    bound, surface = report["bound"], report["surface"]
    lines.append(f"Closed form w^k q: largest relative difference {gap:.0e}: {verdict(gap < 1e-9)}")
    lines.append(
        "Pascanu et al. 2013, sigma_max(W) < 1/gamma suffices to vanish: growth at most "
        f"{vanishing:.2f}, {verdict(vanishing < 1)}; no step exceeds sigma_max gamma "
        f"(at most {tightness:.3f} of it), {verdict(tightness <= 1 + 1e-9)}"
    )
    for name in flow.ACTIVATIONS:
        above = bound["scales"][np.asarray(bound[name]["mean"][1]) > 1]
        first = f"from sigma_max gamma = {above[0]:.2f}" if len(above) else "nowhere in the scan"
        lines.append(f"  {name}: the median gradient explodes {first}")
    updates = report["updates"]
    lines.append(
        f"Updates at gain {updates['gains'][-1]:g}: {updates['unclipped'][1][-1]:.2g} unclipped, "
        f"{updates['clipped'][1][-1]:.2g} clipped"
    )
    won = [surface[name]["solved"] for name in ("unclipped", "clipped")]
    out = [surface[name]["thrown out"] for name in ("unclipped", "clipped")]
    lines.append(
        f"One unit, {config.starts} starts, error < {clipping.SOLVED:g} after {config.updates} "
        f"updates: {won[0]:.0%} unclipped, {won[1]:.0%} clipped at {config.threshold:g} "
        f"({out[0]:.0%} and {out[1]:.0%} were thrown far out): "
        f"clipping helps, {verdict(won[1] > won[0])}"
    )
    return "\n".join(lines)


def run(config: Config) -> None:
    """Runs the study, writes figures and numbers, and prints the summary."""
    with command.new_folder("gradient_flow", config.run) as folder:
        report = study(config)
        command.write_numbers(folder, report)
        figures.flow_figure(report, folder / "flow.png")
        figures.bound_figure(report, folder / "bound.png")
        figures.clipping_figure(report, config, folder / "clipping.png")
    print(summary(report, config))
    print(f"Written: {folder}/numbers.json, flow.png, bound.png, clipping.png")


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(command.parse(Config, QUICK, PROGRAM, argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
