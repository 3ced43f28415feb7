"""Chaos, exploding gradients and parallel solvers: three faces of one number.

The largest Lyapunov exponent of a random tanh network h_t = tanh(h_{t-1} W + x_t), with W_ij of
variance g^2 / N, says how fast a small change grows from step to step. Measured against the gain g
it changes sign where theory says; it is the rate at which dL/dh_t grows or shrinks going back in
time; and where it becomes positive, Newton's method over time (DEER) no longer converges in a few
iterations.

    python -m experiments.chaos

References:
  Sompolinsky, Crisanti, Sommers. Chaos in random neural networks. 1988.
  Molgedey, Schuchhardt, Schuster. Suppressing chaos in neural networks by noise. 1992 (the theory
  for discrete time).
  Lim, Zhu, Selfridge, Kasim. Parallelizing non-linear sequential models over the sequence length.
  2024.
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.study import Options, Progress, Study, verdict
from rnn_jax import diagnostics
from rnn_jax.gradients.deer import newton

Q_WARMUP = 100  # steps in which the tangent vectors find the direction that grows most
TOLERANCE = 0.05  # per step, between an exponent and a slope over some hundred steps


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """The largest Lyapunov exponent of random networks, and what follows from it.

    Writes chaos.png and numbers.json.
    """

    sizes: tuple[int, ...] = (100, 400)
    """N, units of the autonomous networks; gradients are measured with the first of them."""
    gains: tuple[float, ...] = (
        0.5, 0.7, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0
    )
    """g, the spectral radius of W as N grows."""
    seeds: int = 10
    """Networks for each gain and size."""
    warmup: int = 500
    """Steps that each network runs before anything is measured."""
    steps: int = 500
    """Steps over which exponents and gradients are measured."""
    newton_gains: tuple[float, ...] = (0.5, 1.0, 1.5, 1.75, 2.0, 2.5, 3.0)
    """Gains of the driven networks that Newton's method solves."""
    newton_size: int = 32
    """Units of these networks."""
    newton_steps: tuple[int, ...] = (100,)
    """T, the lengths that Newton's method solves; 1000 as well takes minutes."""
    newton_seeds: int = 4
    """Networks for each of these gains."""

    def check(self) -> None:
        super().check()
        command.some(self, "sizes", "gains", "newton_gains", "newton_steps")
        command.above_zero(self, "gains", "newton_gains")
        command.at_least(self, sizes=2, seeds=2, warmup=0, steps=2 * Q_WARMUP)
        command.at_least(self, newton_size=2, newton_steps=2, newton_seeds=1)


QUICK = Config(
    quick=True, sizes=(50,), gains=(0.5, 0.9, 1.5, 3.0), seeds=4, warmup=100, steps=300,
    newton_gains=(0.5, 1.5, 3.0), newton_size=16, newton_steps=(50,), newton_seeds=2,
)
# fmt: on


def mean_field(gain: float, noise: float = 0.0) -> float:
    """The largest exponent for N to infinity, inputs of variance `noise`: log g if g < 1 without.

    With x ~ Normal(0, v), v = g^2 E[tanh(x)^2] + noise, it is log(g^2 E[tanh'(x)^2]) / 2.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    v = gain**2 + noise
    for _ in range(20_000):
        v = gain**2 * weights @ np.tanh(math.sqrt(v) * nodes) ** 2 + noise
    slopes = 1 - np.tanh(math.sqrt(v) * nodes) ** 2
    return float(np.log(gain**2 * weights @ slopes**2) / 2)


def network(size: int) -> rnn_jax.Cell:
    """A tanh network whose inputs are added to its units; W of gain 1."""
    return rnn_jax.elman(
        size,
        size,
        bias=False,
        w_x_init=rnn_jax.initializers.identity(),
        w_h_init=jax.nn.initializers.normal(size**-0.5),
    )


def with_gain(params: rnn_jax.ElmanParams, gain: jax.Array) -> rnn_jax.ElmanParams:
    """The same network at another gain."""
    return params._replace(w_h=gain * params.w_h)


def autonomous(config: Config, size: int, gain: jax.Array, key: jax.Array) -> tuple[Any, ...]:
    """A network without input, on its attractor: cell, params, state, inputs."""
    cell, (k_params, k_state) = network(size), jax.random.split(key)
    params = with_gain(cell.init(k_params), gain)
    start = jax.random.normal(k_state, (size,), float)
    state, _ = rnn_jax.unroll(cell, params, start, jnp.zeros((config.warmup, size)))
    return cell, params, state, jnp.zeros((config.steps, size))


def exponent(config: Config, size: int, gain: jax.Array, key: jax.Array) -> jax.Array:
    """The largest Lyapunov exponent of an autonomous network."""
    result = diagnostics.lyapunov_exponents(
        *autonomous(config, size, gain, key), k=1, warmup=Q_WARMUP
    )
    return result.exponents[0]


def slope(config: Config, size: int, gain: jax.Array, key: jax.Array) -> jax.Array:
    """The growth of log ||dL/dh_t|| in a step back, for a loss at the last step."""
    cell, params, state, xs = autonomous(config, size, gain, key)
    q = jax.random.normal(jax.random.fold_in(key, 1), (size,), float)
    last = jnp.zeros_like(xs).at[-1].set(q)
    flow = diagnostics.gradient_flow(cell, lambda y, q: y @ q, params, state, xs, last)
    logs = jnp.log(flow.total_norm)[:-Q_WARMUP]
    t = jnp.arange(logs.size, dtype=logs.dtype)
    t = t - t.mean()
    return -(t @ logs) / (t @ t)


class Driven(NamedTuple):
    """A network with noise of variance 1 as its input, and Newton's method on it."""

    exponent: Any  # []
    full: Any  # [], iterations with the whole Jacobians
    diagonal: Any  # [], iterations with their diagonals
    error: Any  # [], of the solution with the whole Jacobians, against the loop


def driven(config: Config, T: int, gain: jax.Array, key: jax.Array) -> Driven:
    """The exponent of a driven network, and the iterations that solve T steps of it."""
    size = config.newton_size
    cell, (k_params, k_xs) = network(size), jax.random.split(key)
    params = with_gain(cell.init(k_params), gain)
    xs = jax.random.normal(k_xs, (max(T, config.steps), size), float)
    exponents, _ = diagnostics.lyapunov_exponents(cell, params, None, xs, k=1, warmup=Q_WARMUP)
    full, diagonal = (newton(cell, params, None, xs[:T], jacobian=j) for j in ("full", "diagonal"))
    _, ys = rnn_jax.unroll(cell, params, None, xs[:T])
    error = jnp.max(jnp.abs(full.states - ys))
    return Driven(exponents[0], full.iterations, diagonal.iterations, error)


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """All the numbers."""
    say.expect(
        (len(config.sizes) + 1) * len(config.gains)
        + len(config.newton_steps) * len(config.newton_gains)
    )

    def over(function: Any, gains: tuple[float, ...], seeds: int, what: str) -> Any:
        """``function(gain, key)``, all seeds at once: a pytree of arrays [gains, seeds]."""
        run = jax.jit(jax.vmap(function, (None, 0)))
        keys, results = jax.random.split(jax.random.key(config.seed), seeds), []
        for gain in gains:
            say(f"{what}, gain {gain:g}")
            results.append(jax.tree.map(np.asarray, run(jnp.asarray(gain), keys)))
        return jax.tree.map(lambda *a: np.stack(a), *results)

    free, newtons = (config.gains, config.seeds), (config.newton_gains, config.newton_seeds)
    return {
        "autonomous": {
            str(N): over(partial(exponent, config, N), *free, f"N = {N}") for N in config.sizes
        },
        "slope": over(partial(slope, config, config.sizes[0]), *free, "gradients"),
        "driven": {
            str(T): over(partial(driven, config, T), *newtons, f"T = {T}")._asdict()
            for T in config.newton_steps
        },
        "theory": [mean_field(g) for g in config.gains],
        "theory driven": [mean_field(g, noise=1.0) for g in config.newton_gains],
    }


def crossing(gains: tuple[float, ...], medians: np.ndarray) -> float:
    """The gain above which the exponent stays positive, between two gains by a straight line."""
    at = np.flatnonzero(medians <= 0)
    if not len(at) or at[-1] == len(gains) - 1:
        return math.nan
    i = at[-1]
    part = -medians[i] / (medians[i + 1] - medians[i])
    return float(gains[i] + part * (gains[i + 1] - gains[i]))


def claims(report: dict[str, Any], config: Config) -> list[tuple[str, bool]]:
    """What theory says, what was measured, and whether it is so."""
    N, medians = config.sizes[-1], np.median(report["autonomous"][str(config.sizes[-1])], axis=1)
    gap = float(np.max(np.abs(medians - report["theory"])))
    zero = crossing(config.gains, medians)
    where = "one sign" if math.isnan(zero) else f"positive from g = {zero:.2f} on (theory: 1)"
    apart = float(np.max(np.abs(report["slope"] - report["autonomous"][str(config.sizes[0])])))
    found = [
        (
            f"N = {N}: at most {gap:.3f} from mean-field theory (within 1 / sqrt(N) = "
            f"{N**-0.5:.3f}); {where}",
            gap < N**-0.5,
        ),
        (
            f"Slope of log |dL/dh_t| and exponent: at most {apart:.3f} apart in "
            f"{report['slope'].size} networks",
            apart < TOLERANCE,
        ),
    ]
    for T, results in report["driven"].items():
        stable = results["full"][results["exponent"] < -0.1]
        chaotic = results["full"][results["exponent"] > 0]
        if stable.size and chaotic.size:
            text = (
                f"Newton over T = {T}: at most {stable.max()} iterations where the exponent is "
                f"below -0.1, at least {chaotic.min()} where it is above 0"
            )
            found.append((text, bool(stable.max() < chaotic.min())))
    return found


def summary(report: dict[str, Any], config: Config) -> str:
    """What a person reads at the end."""
    heads = [f"N = {N}" for N in config.sizes]
    lines = [
        "Largest Lyapunov exponent per step (medians over the seeds)",
        f"{'gain':>6}{'theory':>10}" + "".join(f"{h:>10}" for h in heads) + f"{'slope':>10}",
    ]
    columns = [np.median(report["autonomous"][str(N)], axis=1) for N in config.sizes]
    columns = [np.array(report["theory"]), *columns, np.median(report["slope"], axis=1)]
    for gain, *row in zip(config.gains, *columns, strict=True):
        lines.append(f"{gain:6.2f}" + "".join(f"{round(x, 3) + 0.0:10.3f}" for x in row))
    for T, results in report["driven"].items():
        lines.append(f"Newton's iterations, T = {T}, n = {config.newton_size}, driven by noise")
        lines.append(f"{'gain':>6}{'exponent':>10}{'full':>10}{'diagonal':>10}{'error':>10}")
        rows = [np.median(results[name], axis=1) for name in Driven._fields]
        for gain, *row in zip(config.newton_gains, *rows, strict=True):
            lines.append("{:6.2f}{:10.3f}{:10.0f}{:10.0f}{:10.0e}".format(gain, *row))
    for text, holds in claims(report, config):
        lines.append(f"{text}: {verdict(holds)}")
    return "\n".join(lines)


def draw(report: dict[str, Any], config: Config) -> Figure:
    """The exponent against the gain, the slope of the gradient and Newton's iterations."""
    figure, (left, middle, right) = plots.panels(1, 3, size=(15, 4.8))
    fine = np.linspace(min(config.gains), max(config.gains), 60)
    left.plot(fine, [mean_field(g) for g in fine], "k--", label=r"mean field, $N \to \infty$")
    for number, (N, exponents) in enumerate(report["autonomous"].items()):
        plots.band(left, config.gains, exponents, f"N = {N}, median, quartiles", f"C{number}", ".-")
    left.axvline(1, color="gray", linewidth=0.8, label="gain 1, exponent 0")
    left.axhline(0, color="gray", linewidth=0.8)
    left.set(title="Chaos begins above gain 1", xlabel="gain g")
    left.set_ylabel("largest Lyapunov exponent")
    exponents = report["autonomous"][str(config.sizes[0])]
    middle.axline((0, 0), slope=1, color="k", linestyle="--", label="equal")
    gains = np.repeat(np.array(config.gains)[:, None], config.seeds, 1)
    drawn = middle.scatter(exponents, report["slope"], s=14, c=gains, label="a network")
    figure.colorbar(drawn, ax=middle, label="gain g")
    middle.set(title=f"The gradient grows as fast (N = {config.sizes[0]})")
    middle.set(xlabel="largest Lyapunov exponent")
    middle.set_ylabel(r"slope of $\log\|\partial L/\partial h_t\|$, back")
    for number, (T, results) in enumerate(report["driven"].items()):
        for name, marker in (("full", "o"), ("diagonal", "x")):
            at, found = results["exponent"].ravel(), results[name].ravel()
            label = f"T = {T}, {name} Jacobian"
            right.plot(at, found, marker, color=f"C{number}", label=label)
    right.axvline(0, color="gray", linewidth=0.8, label="exponent 0")
    right.set(yscale="log", ylim=(1, 6 * max(config.newton_steps)), ylabel="iterations")
    right.yaxis.set_major_formatter("{x:g}")
    right.set(title=f"Newton over time (driven, N = {config.newton_size})")
    right.set(xlabel="largest Lyapunov exponent")
    for axes, where in ((left, "lower right"), (middle, "lower right"), (right, "upper left")):
        axes.legend(loc=where)
    return figure


STUDY = Study("chaos", Config, QUICK, measure, summary, {"chaos.png": draw}, x64=True)

if __name__ == "__main__":
    sys.exit(STUDY.main())
