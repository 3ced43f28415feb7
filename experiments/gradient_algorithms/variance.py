"""The noise of one draw of each unbiased estimate, and what it costs to average it away."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import rnn_jax
from experiments.gradient_algorithms.config import Config, Part
from experiments.gradient_algorithms.nets import D, gradient, program, random_problem
from experiments.harness import plots
from experiments.harness.measure import quartiles, times
from experiments.harness.study import Progress

ESTIMATES: dict[str, dict[str, Any]] = {  # options; the name of an algorithm ends at the comma
    "uoro": {},
    "kf_rtrl": {},
    "ok, rank 1": {"rank": 1},
    "ok, rank 4": {"rank": 4},
    "forward_gradient": {},
    "artbp": {},
    "randomized_telescope": {},
}
# Of an earlier prototype on other nets of this kind, not published anywhere. Its uoro estimated
# the immediate influence too: with an exact one it had 2.90 in place of 4.26, 11.3 of 13.6.
EARLIER = {
    "uoro": {(8, 10): 3.8, (8, 50): 4.26, (32, 50): 13.6},
    "kf_rtrl": {(8, 50): 1.42, (32, 50): 2.29},
    "ok, rank 1": {(8, 50): 1.36, (32, 50): 2.20},
    "ok, rank 4": {(8, 50): 0.26, (32, 50): 0.81},
}


def relative_std(name: str, n: int, T: int, draws: int) -> Callable[[jax.Array], jax.Array]:
    """``(key) -> []``: root of the mean of |g - E g|^2, over |E g|, of a random net.

    One draw after the other: on a CPU, batches of matrices that `ok` decomposes side by side may
    wait for each other for ever (jaxlib 0.10.2, two cores).
    """
    cell = rnn_jax.elman(D, n)
    run, exact = gradient(name.split(",")[0], cell, **ESTIMATES[name]), gradient("bptt", cell)

    def measure(key: jax.Array) -> jax.Array:
        k_problem, k_draws = jax.random.split(key)
        problem = random_problem(k_problem, n, T)
        truth = exact(problem)

        def square(key: jax.Array) -> jax.Array:
            return ((run(problem, key) - truth) ** 2).sum() / (truth**2).sum()

        return jax.lax.map(square, jax.random.split(k_draws, draws)).mean() ** 0.5

    return measure


def measure(config: Config, say: Progress) -> list[dict[str, Any]]:
    """A row for each shape and estimate."""
    keys, rows = jax.random.split(jax.random.key(config.seed), config.nets), []
    names = config.chosen(ESTIMATES)
    for n, T in config.variance_shapes:
        say(f"times, n = {n}, T = {T}")
        draws = {name: program(name.split(",")[0], n, T, **ESTIMATES[name]) for name in names}
        seconds = times({"bptt": program("bptt", n, T)} | draws, rounds=config.rounds)
        for name in names:
            say(f"{name}, n = {n}, T = {T}")
            with jax.enable_x64(True):
                one = relative_std(name, n, T, config.variance_draws)
                std = quartiles(jax.jit(partial(jax.lax.map, one))(keys))
            time = float(np.median(seconds[name] / seconds["bptt"]))
            row = {"n": n, "T": T, "name": name, "std": std, "time": time}
            rows.append(row | {"work": time * float(std[1]) ** 2})
    return rows


def text(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Relative standard deviation of one draw, median [quartiles] of the nets; earlier",
        "  prototype, not published; work: variance x time, in times of the exact gradient",
    ]
    for row in rows:
        low, median, high = row["std"]
        earlier = EARLIER.get(row["name"], {}).get((row["n"], row["T"]))
        beside = f"earlier {earlier:g}" if earlier else ""
        lines.append(
            f"  n = {row['n']:<3} T = {row['T']:<4}{row['name']:<21}{median:8.3g} "
            f"[{low:.3g}, {high:.3g}]  work {row['work']:.3g}  {beside}".rstrip()
        )
    return lines


def figure(rows: list[dict[str, Any]]) -> Figure:
    shapes = list(dict.fromkeys((row["n"], row["T"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, (left, right) = plots.panels(1, 2, size=(11, 4.6), sharey=True)
    for j, (n, T) in enumerate(shapes):
        mine = [row for row in rows if (row["n"], row["T"]) == (n, T)]
        y = np.arange(len(names)) + (j - (len(shapes) - 1) / 2) * 0.6 / len(shapes)
        low, median, high = np.array([row["std"] for row in mine]).T
        style = {"fmt": "o", "color": f"C{j}", "label": f"n = {n}, T = {T}"}
        left.errorbar(median, y, xerr=(median - low, high - median), **style)
        earlier = [EARLIER.get(name, {}).get((n, T), np.nan) for name in names]
        label = "earlier prototype" if np.isfinite(earlier).any() else None
        left.plot(earlier, y, "kx", label=label)
        right.plot([row["work"] for row in mine], y, "o", color=f"C{j}")
    left.set(title="One draw (median, quartiles of the nets)", xlabel="relative standard deviation")
    right.set(title="Work for a relative standard deviation of one")
    right.set_xlabel("variance x time, in times of the exact gradient")
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    for axes in (left, right):
        axes.axvline(1, color="k", linewidth=0.8, label="norm (left), cost (right) of the gradient")
        axes.set_xscale("log")
    named = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))  # each once
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=5)
    return figure


def pieces(config: Config) -> int:
    return len(config.variance_shapes) * (1 + len(config.chosen(ESTIMATES)))


PART = Part("variance", pieces, measure, text, figure)
