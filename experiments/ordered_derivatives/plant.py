"""Identification of the plant y' = y / (1 + y^2) + u^3 by a small net, and rates of learning.

The net y' = v tanh(w_u u + w_y y + b) + c is a cell whose state is the output y. One step ahead,
it reads the measured y (teacher forcing); along the simulated path, it reads its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import rnn_jax

SEQUENCES, T = 20, 25  # for training
T_TEST = 100
CHUNK = 50  # updates in one compiled program
LEAST = 0.3  # factor of the guarded rate


class Params(NamedTuple):
    w_u: jax.Array  # [H]
    w_y: jax.Array  # [H]
    b: jax.Array  # [H]
    v: jax.Array  # [H]
    c: jax.Array  # []


class Data(NamedTuple):
    """Inputs, and the output before and after each."""

    u: jax.Array  # [B, T]
    y: jax.Array  # [B, T + 1]


Loss = Callable[[Params, Data], jax.Array]


def net(H: int) -> rnn_jax.Cell:
    """The model of the plant; x: [], y: []."""

    def init(key: jax.Array) -> Params:
        w_u, w_y, b, v = jax.random.normal(key, (4, H), float)
        return Params(w_u, 0.3 * w_y, b, v / jnp.sqrt(float(H)), jnp.zeros((), float))

    def step(params: Params, y: jax.Array, u: jax.Array) -> Any:
        h = jnp.tanh(params.w_u * u + params.w_y * y + params.b)
        y = h @ params.v + params.c
        return y, y

    def init_state(params: Params) -> jax.Array:
        return jnp.zeros((), params.b.dtype)

    return rnn_jax.Cell(init, init_state, lambda params, u: u, step)


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


def test_input() -> jax.Array:
    """Two sines: nothing like it was in the training."""
    k = jnp.arange(T_TEST, dtype=float)
    return jnp.sin(2 * jnp.pi * k / 25) + jnp.sin(2 * jnp.pi * k / 10)


def free_run(cell: rnn_jax.Cell, params: Params, u: jax.Array) -> jax.Array:
    """The outputs along the path that the model simulates, from rest: [T]."""
    return rnn_jax.unroll(cell, params, None, u)[1]


def losses(cell: rnn_jax.Cell) -> dict[str, Loss]:
    """The mean squared error, one step ahead and along the simulated path."""

    def one_step(params: Params, data: Data) -> jax.Array:
        predict = jax.vmap(jax.vmap(lambda y, u: cell.step(params, y, u)[1]))
        return jnp.mean((predict(data.y[:, :-1], data.u) - data.y[:, 1:]) ** 2)

    def simulation(params: Params, data: Data) -> jax.Array:
        ys = jax.vmap(lambda u: free_run(cell, params, u))(data.u)
        return jnp.mean((ys - data.y[:, 1:]) ** 2)

    return {"one step": one_step, "simulation": simulation}


def train(
    step: Callable[[Any], tuple[Any, jax.Array]], carry: Any, updates: int, text: str
) -> tuple[Any, np.ndarray]:
    """Many runs side by side; `step` is of one run, the carry of all. Loss: [runs, updates]."""
    chunk = jax.jit(jax.vmap(lambda c: jax.lax.scan(lambda c, _: step(c), c, length=CHUNK)))
    curves = []
    for _ in tqdm(range(-(-updates // CHUNK)), desc=text, unit="chunk", leave=False):
        carry, curve = chunk(carry)
        curves.append(np.asarray(curve))
    return carry, np.concatenate(curves, axis=1)


def identify(H: int, seeds: int, noises: tuple[float, ...], updates: int) -> dict[str, Any]:
    """NRMSE of the free run for each way to train, noise and seed; and the runs of the first."""
    cell, adam = net(H), optax.adam(optax.cosine_decay_schedule(2e-2, updates))
    noise, keys = _grid(jnp.array(noises), seeds)
    data = jax.vmap(lambda key, noise: measured(jax.random.fold_in(key, 1), noise))(keys, noise)
    u = test_input()
    y = np.asarray(run_plant(u)[1:])
    found: dict[str, Any] = {"u": u.tolist(), "plant": y.tolist(), "noises": noises}
    for name, loss in losses(cell).items():

        def step(carry: Any, loss: Loss = loss) -> Any:
            params, state, data = carry
            value, grads = jax.value_and_grad(loss)(params, data)
            with jax.numpy_dtype_promotion("standard"):  # optax needs it
                moves, state = adam.update(grads, state)
            return (optax.apply_updates(params, moves), state, data), value

        params = jax.vmap(cell.init)(keys)
        carry = params, jax.vmap(adam.init)(params), data
        (params, _, _), _ = train(step, carry, updates, name)
        paths = jax.jit(jax.vmap(lambda p: free_run(cell, p, u)))(params)
        nrmse = np.sqrt(np.mean((np.asarray(paths) - y) ** 2, axis=1)) / np.std(y)
        found[name] = {
            "nrmse": nrmse.reshape(len(noises), seeds).tolist(),
            "path": np.asarray(paths).reshape(len(noises), seeds, -1)[:, 0].tolist(),
        }
    return found


def compare_rates(
    H: int, seeds: int, rates: tuple[float, ...], updates: int, a: float, b: float
) -> dict[str, Any]:
    """Gradient descent on the simulated path from each rate, with each of the RULES."""
    cell = net(H)
    loss = losses(cell)["simulation"]
    start, keys = _grid(jnp.array(rates), seeds)
    data = jax.vmap(lambda key: measured(jax.random.fold_in(key, 1), jnp.zeros(())))(keys)
    params = jax.vmap(cell.init)(keys)
    first = float(jnp.max(jax.jit(jax.vmap(loss))(params, data)))
    found: dict[str, Any] = {"rates": rates, "a": a, "b": b, "start": first}
    for name, rule in RULES.items():

        def step(carry: Any, rule: Rule = rule) -> Any:
            params, rate, last, data = carry
            value, g = jax.value_and_grad(loss)(params, data)
            rate = rate * factor(rule, g, last, a, b)
            params = jax.tree.map(lambda p, g: p - rate * g, params, g)
            return (params, rate, g, data), value

        carry = params, start, jax.tree.map(jnp.zeros_like, params), data
        carry, curve = train(step, carry, updates, name)
        curve = curve.reshape(len(rates), seeds, -1)
        found[name] = {
            "loss": curve[:, :, -1],
            "curve": np.median(curve, axis=1),  # over the seeds; NaN if one diverged
            "last_rate": np.asarray(carry[1]).reshape(len(rates), seeds),
        }
    return found


GUARDED = "the same, at least 0.3"
Rule = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
RULES: dict[str, Rule] = {  # what b is multiplied with: g.last, |g|^2, |last|^2
    "fixed": lambda dot, g, last: jnp.zeros_like(dot),
    "a + b cos": lambda dot, g, last: dot / jnp.sqrt(g * last),
    "a + b g.last / |last|^2": lambda dot, g, last: dot / last,
    GUARDED: lambda dot, g, last: dot / last,
}


def factor(rule: Rule, g: Params, last: Params, a: float, b: float) -> jax.Array:
    """What the rate is multiplied with; 1 at the first update, which has no last gradient."""
    if rule is RULES["fixed"]:
        return jnp.ones_like(g.c)
    dot, square, before = (optax.tree.vdot(*pair) for pair in ((g, last), (g, g), (last, last)))
    known = (before > 0) & (square > 0)
    one = jnp.ones_like(dot)
    square, before = jnp.where(known, square, one), jnp.where(known, before, one)
    found = a + b * rule(dot, square, before)
    if rule is RULES[GUARDED]:  # a step too far turns g back, longer: without it the rate gets < 0
        found = jnp.maximum(found, LEAST)
    return jnp.where(known, found, one)


def _grid(values: jax.Array, seeds: int) -> tuple[jax.Array, jax.Array]:
    """Each value with each seed: [values * seeds], and keys; the same keys for each value."""
    keys = jax.random.split(jax.random.key(0), seeds)
    return jnp.repeat(values, seeds), jnp.concatenate([keys] * len(values))
