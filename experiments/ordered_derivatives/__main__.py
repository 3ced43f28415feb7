"""The command line: all six parts, one after the other."""

import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import jax
import numpy as np

from experiments.harness import command, measure
from experiments.ordered_derivatives import figures, lags, market, ordered, plant
from experiments.ordered_derivatives.config import QUICK, Config, check

_PROGRAM = "python -m experiments.ordered_derivatives"


def study(config: Config) -> dict[str, Any]:
    """All the numbers, in float64."""
    with jax.enable_x64(True):
        return {
            "ordered": ordered.study(config.inputs, config.entries),
            "lags": lags.study(),
            "plant": plant.identify(config.units, config.seeds, config.noises, config.updates),
            "rates": plant.compare_rates(
                config.units, config.seeds, config.rates, config.rate_updates, config.a, config.b
            ),
            "market": market.sensitivity(config.rounds, config.seconds),
            "price": market.simultaneous(config.iterations),
        }


def verdict(holds: bool) -> str:
    return "reproduced" if holds else "not reproduced"


def summary(found: dict[str, Any]) -> str:
    """What a person reads at the end; the claims are those of the paper, which has no numbers."""
    lines = chain(_exact(found), _plant(found["plant"]), _rates(found["rates"]), _market(found))
    return "\n".join(lines)


def _exact(found: dict[str, Any]) -> list[str]:
    a, b = found["ordered"], found["lags"]
    gap = max(a["gap_jax"], a["gap_perturbation"])
    return [
        "1. One sweep back through a list of elementary functions gives the exact derivatives",
        f"   {a['z']} z, {a['inputs']} inputs; apart from jax.grad {a['gap_jax']:.0e}, from "
        f"perturbation {a['gap_perturbation']:.0e}: {verdict(gap < 1e-12)}",
        f"   products: one sweep {a['backward_products']}; perturbation of each input "
        f"{a['perturbation_products']}, of each z {a['perturbation_products_all_z']}",
        "2. The net with lags one and two, swept by hand, against bptt on a shift register",
        "   apart: "
        + ", ".join(f"{name} {gap:.0e}" for name, gap in b["gap"].items())
        + f": {verdict(max(b['gap'].values()) < 1e-12)}",
    ]


def _plant(found: dict[str, Any]) -> list[str]:
    lines = ["3. Identification: NRMSE of the free run, median (range) of the seeds"]
    for k, noise in enumerate(found["noises"]):
        both = [np.array(found[name]["nrmse"][k]) for name in ("one step", "simulation")]
        texts = [f"{np.median(n):.3f} ({n.min():.3f} to {n.max():.3f})" for n in both]
        wins = int(np.sum(both[1] < both[0]))
        lines.append(
            f"   noise {noise:g}: one step {texts[0]}, simulation {texts[1]}; simulation is "
            f"better for {wins} of {len(both[0])} seeds"
        )
    noisiest = int(np.argmax(found["noises"]))
    medians = [np.median(found[name]["nrmse"][noisiest]) for name in ("one step", "simulation")]
    lines.append(f"   training along the simulated path helps: {verdict(medians[1] < medians[0])}")
    return lines


def _rates(found: dict[str, Any]) -> list[str]:
    lines = [
        f"4. Gradient descent from rates {', '.join(f'{r:g}' for r in found['rates'])} (a = "
        f"{found['a']:g}, b = {found['b']:g}): last error, median of the seeds",
        "   (the floor of the last rule is ours)",
    ]
    best = {}
    for name in plant.RULES:
        medians = np.median(np.nan_to_num(found[name]["loss"], nan=np.inf), axis=1)
        best[name] = medians
        shown = (f"{m:.2g}" if m < found["start"] else "diverged" for m in medians)
        lines.append(f"   {name:<25}{', '.join(shown)}")
    for name in list(plant.RULES)[1:]:
        wins = bool(best[name].max() < best["fixed"].min())
        lines.append(f"   {name}: better from any rate than each fixed rate: {verdict(wins)}")
    return lines


def _market(found: dict[str, Any]) -> list[str]:
    m, price = found["market"], found["price"]
    us = {name: f"{1e6 * seconds:.1f} us" for name, seconds in m["seconds"].items()}
    top = ", ".join(f"{name} {value:+.2f}" for name, value in m["elasticity"][:5])
    exact = m["gap"]["all runs at once"] < 1e-10 and m["gap"]["a run for each"] < 1e-4
    ratio = m["ratio"]["a run for each"]
    return [
        f"5. A market, {m['inputs']} inputs (parameters, series, start): one sweep "
        f"{us['one sweep']}, a run for each input {us['a run for each']}: {ratio:.0f} times as "
        f"long; the target alone {us['the target alone']}",
        f"   apart from the runs {m['gap']['a run for each']:.0e}, from forward mode (all at once, "
        f"{m['ratio']['all runs at once']:.1f} times as long) {m['gap']['all runs at once']:.0e}: "
        f"{verdict(exact and ratio > 1)}",
        f"   percent for a percent: {top}",
        "6. Price that clears the market in each period: gradient through its iterations, apart "
        "from the implicit one",
        "   "
        + ", ".join(f"{n}: {g:.0e}" for n, g in zip(price["iterations"], price["gap"], strict=True))
        + f"; memory {price['bytes'][-1] / price['bytes_implicit']:.0f} times as much: "
        + verdict(price["gap"][-1] < 1e-9),
    ]


def run(config: Config) -> None:
    """Runs all parts, prints them, and writes the figures and the numbers."""
    check(config)
    with command.new_folder("ordered_derivatives", config.run) as folder:
        found = study(config)
        command.write_numbers(folder, {"machine": measure.machine(), **found})
        figures.free_run(folder / "free_run.png", found["plant"])
        figures.sensitivity(folder / "sensitivity.png", found["market"])
        figures.extensions(folder / "extensions.png", found["price"], found["rates"])
    print(f"{summary(found)}\nWritten to {folder}")


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(command.parse(Config, QUICK, _PROGRAM, argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
