"""What truncation leaves out, against its length; and what the local rules do, for comparison."""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import rnn_jax
from experiments.gradient_algorithms import nets
from experiments.gradient_algorithms.config import Config, Part
from experiments.harness import plots
from experiments.harness.measure import quartiles
from experiments.harness.study import Progress

T = 16
EARLIER = {  # of an earlier prototype on another net of this kind, not published
    "k1 = 1": {1: 0.66, 2: 0.50, 4: 0.32, 8: 0.14, 12: 0.023, 16: 0.0},
    "k1 = k2": {1: 0.66, 2: 0.59, 4: 0.41, 8: 0.38, 16: 0.0},
}
OTHERS = "snap", "e_prop"


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """Quartiles over the nets of the relative error: [lengths, 3] of each kind, [3] of others."""
    cell = rnn_jax.elman(nets.D, config.bias_units)
    keys = jax.random.split(jax.random.key(config.seed), 4 * config.nets)
    problems = jax.jit(jax.vmap(lambda key: nets.random_problem(key, config.bias_units, T)))(keys)

    def gradients(name: str, **options: Any) -> jax.Array:
        """[nets, P]."""
        say(f"{name} {' '.join(f'{k} = {v}' for k, v in options.items())}")
        return jax.jit(jax.vmap(nets.gradient(name, cell, **options)))(problems)

    exact = gradients("bptt")

    def error(name: str, **options: Any) -> np.ndarray:
        return quartiles(jax.vmap(nets.relative)(gradients(name, **options), exact))

    return {
        "lengths": config.lengths,
        "k1 = 1": [error("truncated_bptt", k1=1, k2=k) for k in config.lengths],
        "k1 = k2": [error("truncated_bptt", k1=k, k2=k) for k in config.lengths],
        "others": {name: error(name) for name in config.chosen(OTHERS)},
    }


def text(found: dict[str, Any]) -> list[str]:
    lines = ["Bias: relative error of the gradient, T = 16, median of the nets (earlier prototype)"]
    for kind, earlier in EARLIER.items():
        medians = zip(found["lengths"], found[kind], strict=True)
        texts = [f"{k}: {q[1]:.2g} ({earlier.get(k, '-')})" for k, q in medians]
        lines.append(f"  {kind:<8} k2 = {', '.join(texts)}")
    return [*lines, *(f"  {name:<8} {q[1]:.2g}" for name, q in found["others"].items())]


def figure(found: dict[str, Any]) -> Figure:
    figure, axes = plots.panels()
    k = found["lengths"]
    for j, (kind, earlier) in enumerate(EARLIER.items()):
        low, median, high = np.array(found[kind]).T
        axes.fill_between(k, low, high, color=f"C{j}", alpha=0.2)
        axes.plot(k, median, "o-", color=f"C{j}", label=f"truncated, {kind}: median, quartiles")
        axes.plot(*zip(*earlier.items(), strict=True), f"C{j}x", label=f"earlier prototype, {kind}")
    for j, (name, (low, median, high)) in enumerate(found["others"].items(), 2):
        axes.axhspan(low, high, color=f"C{j}", alpha=0.12)
        axes.axhline(median, color=f"C{j}", linestyle="--", label=f"{name}: median, quartiles")
    axes.set(title=f"What truncation leaves out of the gradient (tanh, T = {T})", ylim=(0, None))
    axes.set(xlabel="k2, steps back", ylabel="relative error of the gradient")
    axes.set_xscale("log", base=2)
    axes.set_xticks(k, [str(i) for i in k])
    axes.legend(loc="lower left")
    return figure


def pieces(config: Config) -> int:
    return 1 + 2 * len(config.lengths) + len(config.chosen(OTHERS))


PART = Part("bias", pieces, measure, text, figure, x64=True)
