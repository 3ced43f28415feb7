"""Many seeds of an online algorithm in one compiled call."""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.gradient_algorithms.config import Config, Part
from experiments.gradient_algorithms.stream import BLOCKS, learning_curve, make_learn, timed
from experiments.harness import plots
from experiments.harness.measure import Program, quartiles
from experiments.harness.study import Progress

SWEPT = "snap"


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """Many seeds in one call, twice; and one seed alone."""
    traced: list[int] = []
    run = jax.jit(jax.vmap(make_learn(SWEPT, config.sweep_steps, traced)))
    key = jax.random.key(config.seed)
    say(f"{config.sweep_seeds} seeds")
    keys = jax.random.split(key, (2, config.sweep_seeds))
    ((_, losses), first), (_, second) = timed(run, keys[0]), timed(run, keys[1])
    traces = len(traced)
    say("one seed")
    _, alone = timed(Program(run, jax.random.split(key, 1)))
    return {
        "algorithm": SWEPT,
        "steps": config.sweep_steps,
        "losses": np.asarray(losses),
        "last": quartiles(losses[:, -1]),
        "traces": traces,
        "compile seconds": first - second,
        "seconds": second,
        "seconds of one seed": alone,
    }


def text(found: dict[str, Any]) -> list[str]:
    low, median, high = found["last"]
    return [
        f"Sweep: {len(found['losses'])} seeds of {found['algorithm']} for {found['steps']} steps, "
        f"one call: {found['seconds']:.2f} s, one seed alone {found['seconds of one seed']:.2f} s; "
        f"two calls traced {found['traces']} program",
        f"  loss at the end, median [quartiles] of the seeds: {median:.2g} [{low:.2g}, {high:.2g}]",
    ]


def figure(found: dict[str, Any]) -> Figure:
    losses = found["losses"]
    figure, axes = learning_curve(
        f"{len(losses)} seeds of {found['algorithm']} in one compiled call"
    )
    steps = found["steps"] * np.arange(1, BLOCKS + 1) / BLOCKS
    axes.plot(steps, losses.T, color="0.75", linewidth=0.4)[0].set_label("a seed")
    plots.band(axes, steps, losses, "median, quartiles", "C0", axis=0)
    axes.legend()
    return figure


PART = Part("sweep", lambda c: 2, measure, text, figure)
