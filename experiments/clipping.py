"""What clipping the norm of the gradient does to a descent over walls.

The error of one recurrent unit, E = (sigma(x_50) - 0.7)^2 of x_t = w sigma(x_{t-1}) + b with
x_0 = 0.5, has a wall over (w, b). There the gradient explodes, and one update throws the weights
far out; clipped, they stay near the wall and go on learning.

    python -m experiments.clipping

Reference:
  Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. 2013.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.study import Options, Progress, Study, verdict
from rnn_jax import gradients

START = (5.2, -2.4)  # w, b
W_RANGE, B_RANGE = (4.0, 7.0), (-4.0, -1.5)  # of the picture, and of the starts
X_0, TARGET, STEPS = 0.5, 0.7, 50
UNIT = rnn_jax.elman(1, 1, activation=jax.nn.sigmoid)
SOLVED = 0.01


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Descents on the error surface of one recurrent unit, clipped and not.

    Writes clipping.png and numbers.json.
    """

    threshold: float = 1.0
    """Norm to which a larger gradient is clipped."""
    learning_rate: float = 0.1
    """Step size of gradient descent."""
    updates: int = 400
    """Updates of each descent."""
    starts: int = 400
    """Points from which to descend, drawn at random."""

    def check(self) -> None:
        super().check()
        command.above_zero(self, "threshold", "learning_rate")
        command.at_least(self, updates=1, starts=1)


QUICK = Config(quick=True, updates=200, starts=50)
# fmt: on


def error_and_gradient(w: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E and dE/d(w, b): [2]; with h_t = sigma(x_t) it is an Elman net without input."""
    params = rnn_jax.ElmanParams(w_x=jnp.zeros((1, 1), w.dtype), w_h=w[None, None], b=b[None])
    start = jax.nn.sigmoid(jnp.full(1, X_0, w.dtype))
    last = (jnp.arange(STEPS) == STEPS - 1).astype(w.dtype)
    value_and_grad = gradients.bptt(UNIT, lambda y, is_last: is_last * (y[0] - TARGET) ** 2)
    (error, _), grads = value_and_grad(params, start, jnp.zeros((STEPS, 1), w.dtype), last)
    return error, jnp.stack([grads.w_h[0, 0], grads.b[0]])


def descend(config: Config, threshold: float, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The points (w, b) of a descent, [updates + 1, 2], and their errors, [updates + 1]."""
    optimizer = optax.chain(optax.clip_by_global_norm(threshold), optax.sgd(config.learning_rate))

    def update(carry: Any, _: None) -> tuple[Any, Any]:
        point, state = carry
        error, gradient = error_and_gradient(*point)
        change, state = optimizer.update(gradient, state)
        return (point + change, state), (point, error)

    before = start, optimizer.init(start)
    return jax.lax.scan(update, before, length=config.updates + 1)[1]


def outcome(points: jax.Array, errors: jax.Array) -> dict[str, Any]:
    """The first of some descents, and what has become of the others."""
    ends, (low, high) = np.asarray(points[1:, -1]), np.array([W_RANGE, B_RANGE]).T
    out = np.any((ends < 2 * low - high) | (ends > 2 * high - low), axis=-1)
    return {
        "path": np.asarray(points[0]),
        "errors": np.asarray(errors[0]),
        "solved": float(np.mean(np.asarray(errors[1:, -1]) < SOLVED)),
        "thrown out": float(np.mean(out)),  # more than the size of the picture away from it
    }


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """The error over w and b; a descent from START, and from many starts, clipped and not."""
    say.expect(3)
    say("surface")
    w, b = np.linspace(*W_RANGE, 241), np.linspace(*B_RANGE, 201)
    grid = jax.jit(jax.vmap(jax.vmap(error_and_gradient, (0, None)), (None, 0)))
    errors, slopes = grid(jnp.asarray(w), jnp.asarray(b))
    numbers: dict[str, Any] = {"w": w, "b": b, "error": np.asarray(errors)}
    numbers["largest gradient"] = float(np.linalg.norm(slopes, axis=-1).max())
    low, high = jnp.array([W_RANGE, B_RANGE]).T
    starts = jax.random.uniform(jax.random.key(config.seed), (config.starts, 2), float, low, high)
    starts = jnp.concatenate([jnp.array([START]), starts])
    for name, threshold in (("unclipped", np.inf), ("clipped", config.threshold)):
        say(name)
        numbers[name] = outcome(*jax.jit(jax.vmap(partial(descend, config, threshold)))(starts))
    return numbers


def summary(numbers: dict[str, Any], config: Config) -> str:
    """What a person reads at the end."""
    unclipped, clipped = numbers["unclipped"], numbers["clipped"]
    return (
        f"One unit, {config.starts} starts, error < {SOLVED:g} after {config.updates} updates: "
        f"{unclipped['solved']:.0%} unclipped, {clipped['solved']:.0%} clipped at "
        f"{config.threshold:g} ({unclipped['thrown out']:.0%} and {clipped['thrown out']:.0%} were "
        f"thrown far out): clipping helps, {verdict(clipped['solved'] > unclipped['solved'])}"
    )


def draw(numbers: dict[str, Any], config: Config) -> Figure:
    """The error surface and a descent on it, clipped and not."""
    figure, (left, right) = plots.panels(1, 2, size=(13, 5.2), width_ratios=(1.25, 1))
    w, b, error = numbers["w"], numbers["b"], np.maximum(numbers["error"], 1e-5)
    drawn = left.pcolormesh(w, b, error, norm=LogNorm(), rasterized=True)
    figure.colorbar(drawn, ax=left, label=r"error $(\sigma(x_{50}) - 0.7)^2$")
    names = {"unclipped": "unclipped", "clipped": f"clipped at {config.threshold:g}"}
    for name, on_map, color, size in (("unclipped", "C3", "C3", 9), ("clipped", "white", "C0", 3)):
        path, label = numbers[name]["path"], names[name]
        left.plot(*path.T, ".-", color=on_map, markersize=size, linewidth=size / 3, label=label)
        right.semilogy(numbers[name]["errors"], color=color, label=label)
    left.plot(*START, "o", color="orange", label="start")
    left.set(title=r"$x_t = w\,\sigma(x_{t-1}) + b$, $x_0 = 0.5$, and two descents")
    left.set(xlabel="w", ylabel="b", xlim=(w[0], w[-1]), ylim=(b[0], b[-1]))
    left.legend(loc="lower left", facecolor="lightgray")
    left.grid(False)
    right.axhline(SOLVED, color="gray", linewidth=0.8, label=f"solved: below {SOLVED:g}")
    right.set(title=f"The same descents, step size {config.learning_rate:g}")
    right.set(xlabel="updates", ylabel="error")
    right.legend(loc="lower left")
    return figure


STUDY = Study("clipping", Config, QUICK, measure, summary, {"clipping.png": draw}, x64=True)

if __name__ == "__main__":
    sys.exit(STUDY.main())
