"""The size of dL/dh_t over the distance k = T - t to a loss at the last step alone."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from experiments.gradient_flow.config import Config
from rnn_jax import diagnostics, initializers

D = 4  # inputs
WEIGHTS = (0.9, 1.0, 1.1)  # below, at and above one
FORGET_BIASES = (1.0, 4.0)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
}
GAMMA = {"sigmoid": 0.25, "tanh": 1.0, "ReLU": 1.0}  # the largest slope of the activation


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


def backward(cell: rnn_jax.Cell, run: Run) -> jax.Array:
    """dL/dh_{T-k}, [T, n], k = 0 ... T - 1."""
    last = jnp.zeros((len(run.xs), run.q.size), run.q.dtype).at[-1].set(run.q)
    flow = diagnostics.gradient_flow(cell, lambda y, q: y @ q, run.params, None, run.xs, last)
    return flow.total[::-1]


def quartiles(a: np.ndarray, axis: int = 0) -> np.ndarray:
    """25, 50 and 75 % over the seeds, as the first axis."""
    return np.quantile(a, (0.25, 0.5, 0.75), axis=axis)


def meter(cell: rnn_jax.Cell, units: slice = slice(None)) -> Callable[[Run], np.ndarray]:
    """``runs -> ||dL/dh_{T-k}||``, [seeds, T], over some or all of the units."""
    gradients = jax.jit(jax.vmap(partial(backward, cell)))
    return lambda runs: np.linalg.norm(gradients(runs)[..., units], axis=-1)


def measured(cell: rnn_jax.Cell, config: Config, key: jax.Array) -> np.ndarray:
    """The quartiles of ||dL/dh_{T-k}||, [3, T], of networks as the cell makes them."""
    return quartiles(meter(cell)(draw(cell, config, key)))


def recurrences(config: Config, key: jax.Array) -> dict[str, Any]:
    """h_t = x_t + h_{t-1} w with numbers w, and with matrices whose spectral radius is w.

    There dL/dh_{T-k} = w^k q, which is computed beside what is measured.
    """
    panels: dict[str, Any] = {"scalar": {}, "matrix": {}}
    for name, size in (("scalar", 1), ("matrix", config.hidden)):
        cell = rnn_jax.elman(
            size,
            size,
            activation=jax.nn.identity,
            bias=False,
            w_h_init=jax.nn.initializers.normal(1.0),
        )
        runs = draw(cell, config, key, size)
        w = np.asarray(runs.params.w_h)
        w = w / np.abs(np.linalg.eigvals(w)).max(axis=-1)[:, None, None]
        measure = meter(cell)
        for radius in WEIGHTS:
            params = runs.params._replace(w_h=jnp.asarray(radius * w))
            curves = measure(runs._replace(params=params))
            exact = closed_form(radius * w, np.asarray(runs.q), config.steps)
            panels[name][f"{radius:g}"] = {
                "measured": quartiles(curves),
                "closed form": quartiles(exact),
                "difference": float(np.max(np.abs(curves / exact - 1))),
            }
    return panels


def closed_form(w: np.ndarray, q: np.ndarray, steps: int) -> np.ndarray:
    """||w^k q||, [seeds, steps]."""
    powers = [np.linalg.matrix_power(w, k) @ q[..., None] for k in range(steps)]
    return np.linalg.norm(powers, axis=(-2, -1)).T


def activations(config: Config, key: jax.Array) -> dict[str, np.ndarray]:
    """The same orthogonal recurrent weights under three activations."""
    return {
        name: measured(rnn_jax.elman(D, config.hidden, activation=f), config, key)
        for name, f in ACTIVATIONS.items()
    }


def initialisations(config: Config, key: jax.Array) -> dict[str, np.ndarray]:
    """Three recurrent matrices of a tanh network, and the identity with ReLU (an IRNN)."""
    cases = {
        "Glorot, tanh": (jnp.tanh, initializers.glorot_uniform()),
        "orthogonal, tanh": (jnp.tanh, initializers.orthogonal()),
        "identity, tanh": (jnp.tanh, initializers.identity()),
        "identity, ReLU": (jax.nn.relu, initializers.identity()),
    }
    panel = {}
    for name, (activation, w_h) in cases.items():
        cell = rnn_jax.elman(D, config.hidden, activation=activation, w_h_init=w_h)
        panel[name] = measured(cell, config, key)
    return panel


def cells(config: Config, key: jax.Array) -> dict[str, np.ndarray]:
    """An RNN and a GRU; LSTMs, at their memory c, beside the product of their forget gates."""
    H = config.hidden
    plain = {"RNN (tanh)": rnn_jax.elman(D, H), "GRU": rnn_jax.gru(D, H)}
    panel = {name: measured(cell, config, key) for name, cell in plain.items()}
    for bias in FORGET_BIASES:
        cell = rnn_jax.lstm(D, H, b_init=initializers.forget_bias(bias))
        runs = draw(cell, config, key)
        panel[f"LSTM, forget bias {bias:g}"] = quartiles(meter(cell, slice(H, None))(runs))
        gates = jax.jit(jax.vmap(partial(through_forget_gates, cell)))(runs)
        panel[f"its forget gates, {bias:g}"] = quartiles(np.asarray(gates))
    return panel


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
    for name, activation in ACTIVATIONS.items():
        cell = rnn_jax.elman(
            D, config.hidden, activation=activation, w_h_init=jax.nn.initializers.normal(1.0)
        )
        runs, measure = draw(cell, config, key), meter(cell)
        w = np.asarray(runs.params.w_h)
        w = w / np.linalg.norm(w, 2, axis=(-2, -1))[:, None, None] / GAMMA[name]
        curves = [
            measure(runs._replace(params=runs.params._replace(w_h=jnp.asarray(scale * w))))
            for scale in scales
        ]
        panel[name] = rates(np.stack(curves))
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
