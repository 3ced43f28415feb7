"""Identification of the plant y' = y / (1 + y^2) + u^3 by a small net, and rates of learning.

The net y' = v tanh(w_u u + w_y y + b) + c is a cell whose state is the output y. Trained one step
ahead, it reads the measured y (teacher forcing); trained along the simulated path, it reads its
own, as it does when it is left to itself afterwards. Backpropagation through time is what makes
the second possible; after Werbos, Backpropagation through time: what it does and how to do it,
1990. His adaptive learning rate, as we read it, is compared with fixed ones on the same plant.

    python -m experiments.plant
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.study import Options, Progress, Study, verdict

SEQUENCES, T = 20, 25  # for training
WAYS = {"one step": "C1", "simulation": "C0"}  # to train, and their colours


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Identification of a plant, one step ahead and along the simulated path (Werbos 1990).

    Writes free_run.png, rates.png and numbers.json.
    """

    seeds: int = 8
    """Runs of each training, side by side."""
    units: int = 16
    """Hidden units of the model of the plant."""
    noises: tuple[float, ...] = (0.0, 0.5)
    """Standard deviations of the noise in the measured output of the plant."""
    updates: int = 3000
    """Updates of Adam for each identification."""
    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
    """Learning rates to start gradient descent from."""
    rate_updates: int = 2000
    """Updates of gradient descent from each."""
    a: float = 0.9
    """The adaptive rate is multiplied with a + b (cosine) after each update."""
    b: float = 0.2
    """See a."""

    def check(self) -> None:
        super().check()
        command.some(self, "noises", "rates")
        command.above_zero(self, "rates")
        command.at_least(self, noises=0.0, a=0.0, b=0.0)
        command.at_least(self, seeds=1, units=1, updates=1, rate_updates=1)


QUICK = Config(
    quick=True, seeds=2, noises=(0.5,), updates=1000, rates=(1e-3, 1e-1), rate_updates=150
)
# fmt: on


class Params(NamedTuple):
    w_u: jax.Array  # [H]
    w_y: jax.Array  # [H]
    b: jax.Array  # [H]
    v: jax.Array  # [H]
    c: jax.Array  # []


def net(H: int) -> rnn_jax.Cell:
    """The model of the plant; x: [], y: []."""

    def init(key: jax.Array) -> Params:
        w_u, w_y, b, v = jax.random.normal(key, (4, H), float)
        return Params(w_u, 0.3 * w_y, b, v / jnp.sqrt(float(H)), jnp.zeros((), float))

    def step(params: Params, y: jax.Array, u: jax.Array) -> Any:
        h = jnp.tanh(params.w_u * u + params.w_y * y + params.b)
        y = h @ params.v + params.c
        return y, y

    return rnn_jax.Cell(init, lambda p: jnp.zeros((), p.b.dtype), lambda p, u: u, step)


class Data(NamedTuple):
    """Inputs, and the output before and after each."""

    u: jax.Array  # [B, T]
    y: jax.Array  # [B, T + 1]


def run_plant(u: jax.Array) -> jax.Array:
    """u: [T] -> y: [T + 1], from rest."""

    def step(y: jax.Array, u: jax.Array) -> Any:
        y = y / (1 + y**2) + u**3
        return y, y

    start = jnp.zeros((), u.dtype)
    return jnp.concatenate([start[None], jax.lax.scan(step, start, u)[1]])


def measured(key: jax.Array, noise: jax.Array) -> Data:
    """Random inputs, and what the plant does, measured with noise (its start is known)."""
    u_key, noise_key = jax.random.split(key)
    u = jax.random.uniform(u_key, (SEQUENCES, T), float, -2.0, 2.0)
    y = jax.vmap(run_plant)(u)
    return Data(u, y.at[:, 1:].add(noise * jax.random.normal(noise_key, u.shape, float)))


def free_run(cell: rnn_jax.Cell, params: Params, u: jax.Array) -> jax.Array:
    """The outputs along the path that the model simulates, from rest: [T]."""
    return rnn_jax.unroll(cell, params, None, u)[1]


Loss = Callable[[Params, Data], jax.Array]


def losses(cell: rnn_jax.Cell) -> dict[str, Loss]:
    """The mean squared error, one step ahead and along the simulated path."""

    def one_step(params: Params, data: Data) -> jax.Array:
        predict = jax.vmap(jax.vmap(lambda y, u: cell.step(params, y, u)[1]))
        return jnp.mean((predict(data.y[:, :-1], data.u) - data.y[:, 1:]) ** 2)

    def simulation(params: Params, data: Data) -> jax.Array:
        ys = jax.vmap(lambda u: free_run(cell, params, u))(data.u)
        return jnp.mean((ys - data.y[:, 1:]) ** 2)

    return {"one step": one_step, "simulation": simulation}


def starts(cell: rnn_jax.Cell, noises: Any, config: Config) -> tuple[Params, Data]:
    """Of runs side by side, [noises * seeds]: the same params and inputs for each noise."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    keys = jnp.concatenate([keys] * len(noises))
    noise = jnp.repeat(jnp.array(noises, float), config.seeds)
    data = jax.vmap(lambda key, noise: measured(jax.random.fold_in(key, 1), noise))(keys, noise)
    return jax.vmap(cell.init)(keys), data


def train(
    loss: Loss, update: Callable[..., Any], params: Params, state: Any, data: Data, updates: int
) -> tuple[Params, Any, np.ndarray]:
    """All runs at once; `update` is optax's, (gradient, state) -> (moves, state), of one run.

    Returns the params and the state after the last update, and the loss: [runs, updates].
    """

    def run(params: Params, state: Any, data: Data) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, g = jax.value_and_grad(loss)(params, data)
            moves, state = update(g, state)
            return (optax.apply_updates(params, moves), state), value

        return jax.lax.scan(step, (params, state), length=updates)

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        (params, state), curve = jax.jit(jax.vmap(run))(params, state, data)
    return params, state, np.asarray(curve)


def identify(config: Config, say: Progress) -> dict[str, Any]:
    """NRMSE of the free run for each way to train, noise and seed; and the runs of the first."""
    cell, shape = net(config.units), (len(config.noises), config.seeds)
    start, data = starts(cell, config.noises, config)
    adam = optax.adam(optax.cosine_decay_schedule(2e-2, config.updates))
    turns = 2 * jnp.pi * jnp.arange(100, dtype=float)
    u = jnp.sin(turns / 25) + jnp.sin(turns / 10)  # nothing like it was in the training
    y = np.asarray(run_plant(u)[1:])
    found: dict[str, Any] = {"u": np.asarray(u), "plant": y}
    for name, loss in losses(cell).items():
        say(f"trained {name}")
        state = jax.vmap(adam.init)(start)
        params, _, _ = train(loss, adam.update, start, state, data, config.updates)
        paths = np.asarray(jax.jit(jax.vmap(lambda p: free_run(cell, p, u)))(params))
        nrmse = np.sqrt(np.mean((paths - y) ** 2, axis=1)) / np.std(y)
        found[name] = {"nrmse": nrmse.reshape(shape), "path": paths.reshape(*shape, -1)[:, 0]}
    return found


GUARDED = "the same, at least 0.3"
RULES: dict[str, Callable] = {  # (a, b, g.last, |g|^2, |last|^2) -> factor of the rate
    "fixed": lambda a, b, dot, g, last: jnp.ones_like(dot),
    "a + b cos": lambda a, b, dot, g, last: a + b * (dot / jnp.sqrt(g * last)),
    "a + b g.last / |last|^2": lambda a, b, dot, g, last: a + b * (dot / last),
    # A step too far turns g back, longer: without the floor the rate gets negative.
    GUARDED: lambda a, b, dot, g, last: jnp.maximum(a + b * (dot / last), 0.3),
}


def factor(rule: str, g: Params, last: Params, a: float, b: float) -> jax.Array:
    """What the rate is multiplied with; 1 at the first update, which has no last gradient."""
    dot, square, before = (optax.tree.vdot(*pair) for pair in ((g, last), (g, g), (last, last)))
    known, one = (before > 0) & (square > 0), jnp.ones_like(dot)
    square, before = jnp.where(known, square, one), jnp.where(known, before, one)
    return jnp.where(known, RULES[rule](a, b, dot, square, before), one)


def compare_rates(config: Config, say: Progress) -> dict[str, Any]:
    """Gradient descent on the simulated path from each rate, with each of the RULES."""
    cell, shape = net(config.units), (len(config.rates), config.seeds)
    loss = losses(cell)["simulation"]
    start, data = starts(cell, [0.0] * len(config.rates), config)
    rates = jnp.repeat(jnp.array(config.rates), config.seeds)
    found: dict[str, Any] = {"start": float(jnp.max(jax.jit(jax.vmap(loss))(start, data)))}
    for rule in RULES:
        say(f"rate: {rule}")

        def update(g: Params, state: Any, rule: str = rule) -> Any:
            rate, last = state
            rate = rate * factor(rule, g, last, config.a, config.b)
            return jax.tree.map(lambda g: -rate * g, g), (rate, g)

        state = rates, jax.tree.map(jnp.zeros_like, start)
        _, (rate, _), curve = train(loss, update, start, state, data, config.rate_updates)
        curve = curve.reshape(*shape, -1)
        found[rule] = {
            "loss": curve[:, :, -1],
            "curve": np.median(curve, axis=1),  # over the seeds; NaN if one diverged
            "last_rate": np.reshape(rate, shape),
        }
    return found


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """All the numbers."""
    say.expect(len(WAYS) + len(RULES))
    return {"plant": identify(config, say), "rates": compare_rates(config, say)}


def summary(found: dict[str, Any], config: Config) -> str:
    """What a person reads at the end; the paper has no numbers, the claims are its words."""
    errors = [np.array(found["plant"][way]["nrmse"]) for way in WAYS]
    lines = ["Identification: NRMSE of the free run, median (range) of the seeds"]
    for noise, *both in zip(config.noises, *errors, strict=True):
        one, path = (f"{np.median(n):.3f} ({n.min():.3f} to {n.max():.3f})" for n in both)
        wins = np.sum(both[1] < both[0])
        lines += [f"   noise {noise:g}: one step {one}, simulation {path}; simulation is better "]
        lines[-1] += f"for {wins} of {config.seeds} seeds"
    one, path = (np.median(e[np.argmax(config.noises)]) for e in errors)
    lines += [f"   training along the simulated path helps: {verdict(bool(path < one))}"]

    start, rates = found["rates"]["start"], ", ".join(f"{rate:g}" for rate in config.rates)
    lines += [f"Gradient descent from rates {rates} (a = {config.a:g}, b = {config.b:g}): "]
    lines[-1] += "last error, median of the seeds\n   (the floor of the last rule is ours)"
    medians = {}
    for rule in RULES:
        last = found["rates"][rule]["loss"]
        medians[rule] = np.median(np.where(np.isfinite(last), last, np.inf), axis=1)
        shown = (f"{m:.2g}" if m < start else "diverged" for m in medians[rule])
        lines += [f"   {rule:<25}{', '.join(shown)}"]
    for rule in list(RULES)[1:]:
        wins = bool(medians[rule].max() < medians["fixed"].min())
        lines += [f"   {rule}: better from any rate than each fixed rate: {verdict(wins)}"]
    return "\n".join(lines)


def draw_free_run(numbers: dict[str, Any], config: Config) -> Figure:
    """What the plant does with a new input, and the models of the first seed left to themselves."""
    found, count = numbers["plant"], len(config.noises)
    figure, rows = plots.panels(count, 2, size=(11, 3.2 * count), squeeze=False, sharex=True)
    for k, ((left, right), noise) in enumerate(zip(rows, config.noises, strict=True)):
        left.plot(found["plant"], color="0.6", linewidth=4, label="plant")
        for way, color in WAYS.items():
            path, nrmse = found[way]["path"][k], np.median(found[way]["nrmse"][k])
            left.plot(path, color=color, linewidth=1, label=f"trained {way}")
            label = f"{way}: NRMSE {nrmse:.3f}"
            right.plot(path - found["plant"], color=color, linewidth=1, label=label)
        left.set(title=f"Noise {noise:g} in training: free run, first seed", ylabel="output y")
        right.set(title="Model minus plant; NRMSE: median of seeds", ylabel="error of y")
        right.margins(y=0.25)
        right.legend(loc="upper right", ncols=2)
    figure.supxlabel("step")
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def draw_rates(numbers: dict[str, Any], config: Config) -> Figure:
    """The learning curves of each rule, as far as they do not diverge."""
    found, (figure, axes) = numbers["rates"], plots.panels()
    ceiling = 10 * found["fixed"]["curve"][:, 0].max()
    for k, rule in enumerate(RULES):
        curves = np.where(found[rule]["curve"] < ceiling, found[rule]["curve"], np.nan)
        updates = range(config.rate_updates)
        plots.lines(axes, updates, curves, rule, f"C{k}", linewidth=0.9, alpha=0.8)
    axes.set(title="Identification, a line for each first rate", xlabel="updates", yscale="log")
    axes.set(ylabel="mean squared error (median of seeds)", ylim=(None, 30 * ceiling))
    axes.legend(title="factor of the rate", ncols=2, loc="upper right")
    return figure


FILES: dict = {"free_run.png": draw_free_run, "rates.png": draw_rates}
STUDY = Study("plant", Config, QUICK, measure, summary, FILES, x64=True)

if __name__ == "__main__":
    sys.exit(STUDY.main())
