"""The figure that every lecture on recurrent networks draws by hand, measured.

How large is dL/dh_t, going back from a loss at the last step T? It vanishes, explodes or is
preserved, with the recurrent weights, the activation, the cell and the initialisation; a bound on
the largest singular value says when it must vanish, and clipping bounds what an update does where
it explodes.

    python -m experiments.gradient_flow

Reference:
  Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. 2013.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.measure import quartiles
from experiments.harness.study import Options, Progress, Study, verdict
from rnn_jax import diagnostics, gradients, initializers

D = 4  # inputs
WEIGHTS = (0.9, 1.0, 1.1)  # below, at and above one
FORGET_BIASES = (1.0, 4.0)
ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "ReLU": jax.nn.relu}
GAMMA = {"sigmoid": 0.25, "tanh": 1.0, "ReLU": 1.0}  # the largest slope of the activation
NORMAL = jax.nn.initializers.normal(1.0)
SMALLEST = 1e-12  # where the axis of a norm ends


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Vanishing, exploding and preserved gradients, from data.

    Writes gradient_flow.png (dL/dh_t over the distance to the loss), bound.png (the largest
    singular value against what happens) and numbers.json.
    """

    steps: int = 100
    """T, time steps from the start of the sequence to the loss at its end."""
    hidden: int = 32
    """H, hidden units."""
    seeds: int = 64
    """Networks, each with its own weights and inputs; curves are medians, bands quartiles."""
    scales: int = 21
    """Points of each scan over the size of the recurrent weights."""
    threshold: float = 1.0
    """Norm to which a larger gradient is clipped."""
    learning_rate: float = 0.1
    """Step size of the update."""

    def check(self) -> None:
        super().check()
        command.at_least(self, steps=10, hidden=2, seeds=2, scales=3)
        command.above_zero(self, "threshold", "learning_rate")


QUICK = Config(quick=True, steps=50, hidden=16, seeds=16, scales=9)
# fmt: on


class Run(NamedTuple):
    """A network, an input, and the direction q in which the loss L = y_T . q looks."""

    params: Any
    xs: jax.Array  # [T, D]
    q: jax.Array  # [H], of norm one


def draw(cell: rnn_jax.Cell, config: Config, key: jax.Array, inputs: int = D) -> Run:
    """Random runs, [seeds, ...]."""

    def one(key: jax.Array) -> Run:
        k_params, k_xs, k_q = jax.random.split(key, 3)
        params = cell.init(k_params)
        xs = jax.random.normal(k_xs, (config.steps, inputs), float)
        q = jax.random.normal(k_q, (params.w_h.shape[0],), float)
        return Run(params, xs, q / jnp.linalg.norm(q))

    return jax.vmap(one)(jax.random.split(key, config.seeds))


def with_w(run: Run, w: Any) -> Run:
    """The same with other recurrent weights."""
    return run._replace(params=run.params._replace(w_h=jnp.asarray(w)))


def meter(cell: rnn_jax.Cell) -> Callable[[Run], np.ndarray]:
    """``runs -> ||dL/dh_{T-k}||``, [seeds, T], k = 0 ... T - 1; of an LSTM at its memory c."""

    def backward(run: Run) -> jax.Array:
        last = jnp.zeros((len(run.xs), run.q.size), run.q.dtype).at[-1].set(run.q)
        flow = diagnostics.gradient_flow(cell, lambda y, q: y @ q, run.params, None, run.xs, last)
        return flow.total[::-1, -run.q.size :]  # the state of an LSTM is h, c

    of_all = jax.jit(jax.vmap(backward))
    return lambda runs: np.linalg.norm(of_all(runs), axis=-1)


def measured(cells: dict[str, rnn_jax.Cell], config: Config, key: jax.Array) -> dict[str, Any]:
    """The quartiles of ||dL/dh_{T-k}||, [3, T], of networks as each cell makes them."""
    return {name: quartiles(meter(cell)(draw(cell, config, key))) for name, cell in cells.items()}


def recurrences(config: Config, key: jax.Array) -> dict[str, Any]:
    """h_t = x_t + h_{t-1} w with numbers w, and with matrices whose spectral radius is w.

    There dL/dh_{T-k} = w^k q, which is computed beside what is measured.
    """
    panels: dict[str, Any] = {"scalar": {}, "matrix": {}}
    for name, size in (("scalar", 1), ("matrix", config.hidden)):
        cell = rnn_jax.elman(size, size, activation=jax.nn.identity, bias=False, w_h_init=NORMAL)
        runs, norms = draw(cell, config, key, size), meter(cell)
        w, q = np.asarray(runs.params.w_h), np.asarray(runs.q)[..., None]
        w = w / np.abs(np.linalg.eigvals(w)).max(axis=-1)[:, None, None]
        for radius in WEIGHTS:
            curves = norms(with_w(runs, radius * w))
            powers = [np.linalg.matrix_power(radius * w, k) @ q for k in range(config.steps)]
            exact = np.linalg.norm(powers, axis=(-2, -1)).T
            panels[name][f"{radius:g}"] = {
                "measured": quartiles(curves),
                "closed form": quartiles(exact),
                "difference": float(np.max(np.abs(curves / exact - 1))),
            }
    return panels


def activations(config: Config, key: jax.Array) -> dict[str, Any]:
    """The same orthogonal recurrent weights under three activations."""
    rnn = partial(rnn_jax.elman, D, config.hidden)
    return measured({name: rnn(activation=f) for name, f in ACTIVATIONS.items()}, config, key)


def initialisations(config: Config, key: jax.Array) -> dict[str, Any]:
    """Three recurrent matrices of a tanh network, and the identity with ReLU (an IRNN)."""
    rnn, identity = partial(rnn_jax.elman, D, config.hidden), initializers.identity()
    cells = {
        "Glorot, tanh": rnn(w_h_init=initializers.glorot_uniform()),
        "orthogonal, tanh": rnn(w_h_init=initializers.orthogonal()),
        "identity, tanh": rnn(w_h_init=identity),
        "identity, ReLU": rnn(w_h_init=identity, activation=jax.nn.relu),
    }
    return measured(cells, config, key)


def cells(config: Config, key: jax.Array) -> dict[str, Any]:
    """An RNN and a GRU; LSTMs, at their memory c, beside the product of their forget gates."""
    H = config.hidden
    curves = measured({"RNN (tanh)": rnn_jax.elman(D, H), "GRU": rnn_jax.gru(D, H)}, config, key)
    for bias in FORGET_BIASES:
        cell = rnn_jax.lstm(D, H, b_init=initializers.forget_bias(bias))
        gates = jax.jit(jax.vmap(partial(through_forget_gates, cell)))(draw(cell, config, key))
        curves |= measured({f"LSTM, forget bias {bias:g}": cell}, config, key)
        curves[f"its forget gates, {bias:g}"] = quartiles(gates)
    return curves


def through_forget_gates(cell: rnn_jax.Cell, run: Run) -> jax.Array:
    """The norm of the part of dL/dc_{T-k} that passed through forget gates alone, [T]."""

    def step(state: Any, z: jax.Array) -> tuple[Any, Any]:
        _, f, _, o = jnp.split(jax.nn.sigmoid(z + state.h @ run.params.w_h), 4)
        state, _ = cell.step(run.params, state, z)
        return state, (f, o * (1 - jnp.tanh(state.c) ** 2))

    zs = jax.vmap(lambda x: cell.project(run.params, x))(run.xs)
    _, (f, slopes) = jax.lax.scan(step, cell.init_state(run.params), zs)
    at_end = run.q * slopes[-1]  # h_T = o tanh(c_T)
    products = jnp.cumprod(jnp.concatenate([jnp.ones_like(f[:1]), f[:0:-1]]), axis=0)
    return jnp.linalg.norm(at_end[None] * products, axis=-1)


def bound(config: Config, key: jax.Array) -> dict[str, Any]:
    """What happens to the gradient over sigma_max(W) in units of 1 / gamma, its bound.

    ||dL/dh_{t-1}|| <= sigma_max gamma ||dL/dh_t||: below 1 it vanishes, above 1 it may explode.
    """
    scales = np.geomspace(0.25, 16.0, config.scales)
    panel: dict[str, Any] = {"scales": scales}
    for name, f in ACTIVATIONS.items():
        cell = rnn_jax.elman(D, config.hidden, activation=f, w_h_init=NORMAL)
        runs, norms = draw(cell, config, key), meter(cell)
        w = np.asarray(runs.params.w_h)
        w = w / np.linalg.norm(w, 2, axis=(-2, -1))[:, None, None] / GAMMA[name]
        panel[name] = rates(np.stack([norms(with_w(runs, scale * w)) for scale in scales]))
    return panel


def rates(curves: np.ndarray) -> dict[str, np.ndarray]:
    """Growth of [scales, seeds, T] in a step back: the mean over the steps, and the largest."""
    first, last = curves[..., 0], np.maximum(curves[..., -1], np.finfo(float).tiny)
    mean = (last / first) ** (1 / (curves.shape[-1] - 1))
    with np.errstate(invalid="ignore"):  # 0 / 0 once all units are off
        steps = curves[..., 1:] / curves[..., :-1]
    return {
        "mean": quartiles(mean, axis=1),
        "largest mean": mean.max(axis=1),
        "largest step": np.nanmax(steps, axis=(1, 2)),
    }


def updates(config: Config, key: jax.Array) -> dict[str, Any]:
    """How far an update moves a tanh network, over the gain of its W, clipped and not.

    The loss is the squared distance of the last output to a random target.
    """
    gains, cell = np.geomspace(0.5, 4.0, config.scales), rnn_jax.elman(D, config.hidden)
    rule = gradients.bptt(cell, lambda y, target: target[1] * jnp.sum((y - target[0]) ** 2))
    clip = optax.clip_by_global_norm(config.threshold)

    def sizes(gain: jax.Array, run: Run) -> list[jax.Array]:
        wanted = jnp.broadcast_to(run.q, (config.steps, config.hidden))
        last = (jnp.arange(config.steps) == config.steps - 1).astype(run.q.dtype)
        params = with_w(run, gain * run.params.w_h).params
        _, grads = rule(params, None, run.xs, (wanted, last))
        clipped, _ = clip.update(grads, clip.init(params))
        return [config.learning_rate * optax.tree.norm(g) for g in (grads, clipped)]

    of_all = jax.jit(jax.vmap(jax.vmap(sizes, (None, 0)), (0, None)))
    unclipped, clipped = of_all(jnp.asarray(gains), draw(cell, config, key))
    return {
        "gains": gains,
        "unclipped": quartiles(unclipped, axis=1),
        "clipped": quartiles(clipped, axis=1),
    }


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """All the numbers."""
    parts = (recurrences, activations, initialisations, cells, bound, updates)
    say.expect(len(parts))
    numbers = {}
    for part in parts:
        say(part.__name__)
        numbers[part.__name__] = part(config, jax.random.key(config.seed))
    return numbers


def growth(curve: Any) -> float:
    """The factor per step back of a median curve over its second half, away from the loss."""
    median = curve[1]
    half = len(median) // 2
    return float((median[-1] / median[half]) ** (1 / (len(median) - 1 - half)))


def pascanu(bound: dict[str, Any]) -> list[str]:
    """What the bound says, what was measured, and where the gradient explodes."""
    scales, curves = bound["scales"], [bound[name] for name in ACTIVATIONS]
    vanishing = max(float(c["largest mean"][scales < 1].max()) for c in curves)
    tightness = max(float((c["largest step"] / scales).max()) for c in curves)
    lines = [
        "Pascanu et al. 2013, sigma_max(W) < 1/gamma suffices to vanish: growth at most "
        f"{vanishing:.2f}, {verdict(vanishing < 1)}; no step exceeds sigma_max gamma "
        f"(at most {tightness:.3f} of it), {verdict(tightness <= 1 + 1e-9)}"
    ]
    for name, curve in zip(ACTIVATIONS, curves, strict=True):
        above = scales[curve["mean"][1] > 1]
        first = f"from sigma_max gamma = {above[0]:.2f}" if len(above) else "nowhere in the scan"
        lines.append(f"  {name}: the median gradient explodes {first}")
    return lines


def summary(report: dict[str, Any], config: Config) -> str:
    """What a person reads at the end."""
    linear, curves = report["recurrences"], dict[str, Any]()
    for name, kind in (("scalar", "linear unit, |w|"), ("matrix", "linear network, radius")):
        curves |= {f"{kind} = {w}": found["measured"] for w, found in linear[name].items()}
    curves |= report["activations"] | report["initialisations"] | report["cells"]
    gap = max(found["difference"] for panel in linear.values() for found in panel.values())
    unclipped, clipped = (report["updates"][name][1][-1] for name in ("unclipped", "clipped"))
    return "\n".join(
        [
            "Growth of dL/dh_t in one step back in time (median; 1 = preserved)",
            *(f"  {name:<34}{growth(curve):.3f}" for name, curve in curves.items()),
            f"Closed form w^k q: largest relative difference {gap:.0e}: {verdict(gap < 1e-9)}",
            *pascanu(report["bound"]),
            f"Updates at gain {report['updates']['gains'][-1]:g}: {unclipped:.2g} unclipped, "
            f"{clipped:.2g} clipped",
        ]
    )


def over_distance(
    axes: Axes, title: str, smallest: float | None = None, legend: Any = "lower left"
) -> None:
    """What all panels over T - t have."""
    axes.set(title=title, xlabel="T - t, steps back from the loss", yscale="log")
    axes.set_ylabel(r"$\|\partial L/\partial h_t\|$")
    axes.set_ylim(bottom=smallest)
    axes.legend(loc=legend)


def draw_flow(report: dict[str, Any], config: Config) -> Figure:
    """dL/dh_t over the distance to the loss: recurrences, activations, cells, initialisations."""
    figure, grid = plots.panels(2, 3, size=(14, 8.5))
    scalar, matrix, activation, cell, initialisation, clipping = grid.ravel()
    k, colors = np.arange(config.steps), ("C0", "C2", "C3")
    for axes, name, size in ((scalar, "scalar", "|w|"), (matrix, "matrix", "radius of W")):
        for color, (w, found) in zip(colors, report["recurrences"][name].items(), strict=True):
            plots.ribbon(axes, k, found["measured"], f"{size} = {w}: measured", color)
            form = "closed form" if color == "C3" else None
            axes.plot(k, found["closed form"][1], "k:", label=form)
    parts = {"activations": activation, "cells": cell, "initialisations": initialisation}
    for name, axes in parts.items():
        number = -1
        for label, curve in report[name].items():
            gates = label.startswith("its")
            number += not gates
            style = "--" if gates else "-"
            plots.ribbon(axes, k[1:], curve[:, 1:], label, f"C{number}", style)
    over_distance(scalar, "A linear unit: $w^{T-t}$")
    over_distance(matrix, "A linear network: $W^{T-t}q$, W Gaussian")
    over_distance(activation, "Activation (W orthogonal)", SMALLEST, "upper right")
    over_distance(cell, "Cell (LSTM: at its memory c)", SMALLEST)
    over_distance(initialisation, "Initialisation of W", SMALLEST)
    draw_updates(clipping, report["updates"])
    figure.suptitle("Where the gradient of a loss at the last step goes (median and quartiles)")
    return figure


def draw_updates(axes: Axes, updates: dict[str, Any]) -> None:
    """The length of an update over the gain of W."""
    for color, name in (("C3", "unclipped"), ("C0", "clipped")):
        plots.ribbon(axes, updates["gains"], updates[name], name, color)
    axes.set(title="Clipping bounds the update (tanh network)", xscale="log", yscale="log")
    axes.set_xlabel("gain of W (orthogonal, times the gain)")
    axes.set_ylabel("length of one update of the weights")
    plots.x_ticks(axes, (0.5, 1, 2, 4))
    axes.legend(loc="upper left")


def draw_bound(report: dict[str, Any], config: Config) -> Figure:
    """What happens below and above sigma_max gamma = 1."""
    figure, row = plots.panels(1, 3, size=(14, 4.8), sharey=True)
    bound, x = report["bound"], report["bound"]["scales"]
    for axes, (name, gamma) in zip(row, GAMMA.items(), strict=True):
        axes.axvspan(x[0], 1, color="C0", alpha=0.08, label="must vanish")
        axes.plot(x, x, "k--", label=r"bound of a step, $\sigma_{max}\gamma$")
        axes.plot(x, bound[name]["largest step"], "C3.", label="largest step, all networks")
        plots.ribbon(axes, x, bound[name]["mean"], "mean over all steps", "C0")
        axes.axhline(1, color="gray", linewidth=0.8, label="preserved")
        axes.set(title=rf"{name} ($\gamma$ = {gamma:g})", xlabel=r"$\sigma_{max}(W)\,\gamma$")
        axes.set(xscale="log", yscale="log")
    row[0].set_ylabel(r"growth of $\|\partial L/\partial h_t\|$ in one step back")
    row[0].legend(loc="upper left")
    figure.suptitle(
        "Below 1 the gradient must vanish; above 1 it may explode, or not (median, quartiles)"
    )
    return figure


FILES = {"gradient_flow.png": draw_flow, "bound.png": draw_bound}
STUDY = Study("gradient_flow", Config, QUICK, measure, summary, FILES, x64=True)

if __name__ == "__main__":
    sys.exit(STUDY.main())
