"""Every algorithm on every cell, against backpropagation through time in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import rnn_jax
from experiments.gradient_algorithms.config import Config, Part
from experiments.gradient_algorithms.nets import CELLS, SMALL, Problem, gradient, loss, relative
from experiments.harness import plots
from experiments.harness.study import Progress
from rnn_jax.gradients import REGISTER, bptt

(D, H), T = SMALL, 6
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
EXACT = 1e-9  # `implicit` stops when it has settled to 2e-12
HELD = 2000  # steps in which a net settles, for the gradient of an equilibrium

# So short that a sequence of six steps tells them from the exact gradient.
OPTIONS: dict[str, dict[str, Any]] = {
    "truncated_bptt": {"k1": 2, "k2": 3},
    "ok": {"rank": 1},
    "artbp": {"length": 3.0},
}
SHADES = {
    "refused, or does not settle": "0.93",
    "exact: relative error": "#b7e1b1",
    "unbiased: largest z of the mean, over all params": "#c6dbef",
    "biased: relative error (cosine)": "#fde0a8",
    "not what the register says": "#f4a582",
}
WRONG = 4


def problem(cell: rnn_jax.Cell, seed: int) -> Problem:
    """Params in which nothing is zero, inputs and targets."""
    k_params, k_noise, k_x, k_y = jax.random.split(jax.random.key(seed), 4)
    theta, restore = ravel_pytree(cell.init(k_params))
    params = restore(theta + 0.2 * jax.random.normal(k_noise, theta.shape))
    return Problem(params, jax.random.normal(k_x, (T, D)), jax.random.normal(k_y, (T, H)))


def exact(cell: rnn_jax.Cell, given: Problem, held: int) -> jax.Array:
    """The gradient by `bptt`, each input being held for some steps, of which the last counts."""
    counts = jnp.tile(jnp.arange(held) == held - 1, T).astype(given.xs.dtype)
    xs, targets = (jnp.repeat(a, held, axis=0) for a in given[1:])
    run = bptt(cell, lambda y, target: loss(y, target[0]) * target[1])
    return jax.jit(lambda p: ravel_pytree(run(p, None, xs, (targets, counts))[1])[0])(given.params)


def compare(name: str, column: str, given: Problem, truth: jax.Array, keys: Any) -> dict[str, Any]:
    """One entry of the matrix; "why" where the algorithm refuses the cell."""
    kind, run = REGISTER[name].kind, gradient(name, CELLS[column], **OPTIONS.get(name, {}))

    def estimates(given: Problem) -> jax.Array:
        if kind != "unbiased":
            return run(given)[None]
        return jax.lax.map(partial(run, given), keys)  # see `relative_std` for why not vmap

    try:
        got = jax.jit(estimates, compiler_options=FAST_COMPILE)(given)
    except (TypeError, ValueError) as error:
        return {"kind": kind, "why": str(error)}
    if np.isnan(got).all():
        why = "NaN, which is what it returns: this net does not settle under these inputs"
        return {"kind": kind, "why": why}
    mean = got.mean(0)
    cosine = mean @ truth / jnp.linalg.norm(mean) / jnp.linalg.norm(truth)
    found = {"kind": kind, "error": float(relative(mean, truth)), "cosine": float(cosine)}
    return found | (scores(np.asarray(got), np.asarray(truth)) if len(got) > 1 else {})


def scores(draws: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How many standard errors the mean [P] of draws [N, P] is from the exact gradient.

    Params whose gradient is the same in all draws have no standard error: they have to agree.
    """
    error, std = draws.mean(0) - exact, draws.std(0, ddof=1)
    drawn = std > 1e-9 * np.linalg.norm(exact)
    z = error[drawn] / std[drawn] * len(draws) ** 0.5
    spread = float(np.linalg.norm(std) / np.linalg.norm(exact))
    return {
        "largest z": float(np.abs(z).max(initial=0)),
        "rms z": float(np.sqrt((z**2).mean())) if z.size else 0.0,
        "not drawn": float(np.abs(error[~drawn]).max(initial=0) / np.linalg.norm(exact)),
        "relative std": spread,
        "expected error": spread / len(draws) ** 0.5,
    }


def pairs(config: Config) -> tuple[list[str], list[str]]:
    """The rows and the columns that were asked for."""
    columns = [name for name in CELLS if name in (config.cells or CELLS)]
    return config.chosen(REGISTER), columns


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """``{algorithm: {cell: entry}}``."""
    rows, columns = pairs(config)
    found: dict[str, Any] = {name: {} for name in rows}
    keys = jax.random.split(jax.random.key(config.seed + 1), config.draws)
    for column in columns:
        say(f"the truth, {column}")
        cell, given = CELLS[column], problem(CELLS[column], config.seed)
        truth = exact(cell, given, 1)
        for name in rows:
            say(f"{name}, {column}")
            right = exact(cell, given, HELD) if name == "implicit" else truth
            found[name][column] = compare(name, column, given, right, keys)
    return found


def shade(entry: dict[str, Any]) -> int:
    """What the entry is, as a number of SHADES."""
    if "why" in entry:
        return 0
    if entry["kind"] == "unbiased":
        return 2 if entry["largest z"] < 5 and entry["not drawn"] < 1e-10 else WRONG
    if entry["error"] < EXACT:
        return 1
    return 3 if entry["kind"] == "biased" else WRONG


def short(entry: dict[str, Any]) -> str:
    """What stands in the table."""
    if "why" in entry:
        return "-"
    if entry["kind"] == "unbiased":
        return f"z {entry['largest z']:.1f}"
    if entry["error"] < EXACT:
        return f"{entry['error']:.0e}" if entry["error"] else "0"
    return f"{entry['error']:.2f} ({entry['cosine']:.2f})"


def text(found: dict[str, Any]) -> list[str]:
    columns = list(next(iter(found.values())))
    width = {c: max(len(c), *(len(short(row[c])) for row in found.values())) for c in columns}
    lines = [
        "Exactness (relative error of exact ones; error (cosine) of biased ones; largest z of the "
        "mean of unbiased ones)",
        "  " + " " * 22 + "  ".join(f"{c:<{width[c]}}" for c in columns),
    ]
    for name, row in found.items():
        texts = "  ".join(f"{short(row[c]):<{width[c]}}" for c in columns)
        lines.append(f"  {name:<22}{texts}".rstrip())
    entries = [(name, entry) for name, row in found.items() for entry in row.values()]
    reasons = {name: entry["why"] for name, entry in entries if "why" in entry}
    lines += [f"  -: {name}: {why}" for name, why in reasons.items()]
    agree = sum(shade(entry) != WRONG for _, entry in entries)
    served = sum("why" not in entry for _, entry in entries)
    lines.append(
        f"  {served} of {len(entries)} pairs served; {agree} of {len(entries)} as the register "
        f"says: {'all hold' if agree == len(entries) else 'SOME DO NOT HOLD'}"
    )
    return lines


def figure(found: dict[str, Any]) -> Figure:
    columns = list(next(iter(found.values())))
    table = [list(row.values()) for row in found.values()]
    size = max(7.0, 2.6 + 1.05 * len(columns)), 1.8 + 0.42 * len(found)
    figure, axes = plots.panels(size=size)
    shades = [[shade(entry) for entry in row] for row in table]
    texts = [[short(entry) for entry in row] for row in table]
    names = list(found), [c.replace("_", "\n", 1) for c in columns]
    cmap = ListedColormap(list(SHADES.values()))
    plots.matrix(axes, shades, *names, texts, dark=WRONG, cmap=cmap, vmin=0, vmax=WRONG)
    axes.set_xticks(np.arange(len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(found)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5, alpha=1)
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.set_title("Gradients against backpropagation through time (float64, T = 6)")
    patches = [Patch(color=color, label=label) for label, color in SHADES.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=2)
    return figure


def pieces(config: Config) -> int:
    rows, columns = pairs(config)
    return (1 + len(rows)) * len(columns)


PART = Part("exactness", pieces, measure, text, figure, x64=True)
