"""Influence balancing: a parameter whose near influence has the wrong sign.

s' = A s + theta (+1 x 10, -1 x 13), A = I / 2 + superdiagonal / 2, loss (s_1 - 1)^2 / 2 at every
step of an endless stream. Within 40 steps theta raises s_1, from 50 steps on it lowers it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from experiments.gradient_algorithms.config import Config
from rnn_jax import gradients

PLUS, MINUS = 10, 13
N = PLUS + MINUS
WINDOWS = (1, 10, 50, 100, 120, 200)
PUBLISHED_TO_CONVERGE = {1: False, 10: False, 100: False, 200: True}
PUBLISHED_INFLUENCE = {1: 1.0, 10: 10.0, 20: 16.5, 40: 0.57, 50: -4.75, 100: -6.0, 200: -6.0}
RATE, NOISY_RATE = 1e-4, 1e-5
BLOCKS = 200  # points of a curve

# theta enters by no product h @ w and reaches every unit at once, and P = 1; so four of these are
# exact here.
ONLINE: dict[str, tuple[dict[str, Any], str]] = {
    "rtrl": ({}, "exact"),
    "snap": ({"n": 1}, "exact here: theta feeds every unit, so nothing is masked"),
    "kf_rtrl": ({}, "exact here: theta is no weight of a product"),
    "ok": ({"rank": 1}, "exact here: theta is no weight of a product"),
    "forward_gradient": ({}, "exact here: one parameter, and v^2 = 1"),
    "uoro": ({}, "unbiased"),
    "rflo": ({"leak": 0.5}, "biased: units that do not see each other"),
}


def system() -> rnn_jax.Cell:
    """The system as a cell; params: theta []; y = s_1."""
    A = jnp.eye(N) / 2 + jnp.eye(N, k=1) / 2
    sign = jnp.concatenate([jnp.ones(PLUS), -jnp.ones(MINUS)])

    def step(theta: jax.Array, s: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        s = A @ s + z
        return s, s[0]

    return rnn_jax.Cell(
        init=lambda key: jnp.array(0.5),
        init_state=lambda theta: jnp.ones(N),
        project=lambda theta, x: theta * sign,
        step=step,
    )


def loss(y: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error."""
    return (y - target) ** 2 / 2


def influence(steps: int) -> jax.Array:
    """[steps]: d s_1 / d theta after 1, 2, ... steps from a given state."""
    cell, start = system(), jnp.ones(N)
    run = jax.jacfwd(lambda theta: rnn_jax.unroll(cell, theta, start, jnp.zeros(steps))[1])
    return run(jnp.array(0.5))


def windows(k: int, steps: int) -> Callable[[], Any]:
    """Truncation: an update after each window of k steps; losses [steps // k]."""
    cell = system()
    value_and_grad = gradients.truncated_bptt(cell, loss, k1=k, k2=k)
    xs, targets = jnp.zeros(k), jnp.ones(k)

    def update(carry: Any, _: None) -> tuple[Any, jax.Array]:
        theta, s = carry
        (total, s), grad = value_and_grad(theta, s, xs, targets)
        return (theta - RATE * grad, s), total / k

    def run() -> Any:
        return jax.lax.scan(update, (jnp.array(0.5), jnp.ones(N)), length=steps // k)

    return jax.jit(run)


def online(name: str, steps: int) -> Callable[[jax.Array], Any]:
    """An update at every step; losses [steps]."""
    cell, options = system(), ONLINE[name][0]
    algorithm = gradients.REGISTER[name].algorithm(cell, loss, **options)
    rate = NOISY_RATE if name == "uoro" else RATE

    def update(before: Any, _: None) -> tuple[Any, jax.Array]:
        theta, carry = before
        carry, info = algorithm.update(theta, carry, jnp.zeros(()), jnp.ones(()))
        return (theta - rate * info.grads, carry), info.loss

    def run(key: jax.Array) -> Any:
        theta = jnp.array(0.5)
        carry = algorithm.init(theta, jnp.zeros(()), key=key)
        return jax.lax.scan(update, (theta, carry), length=steps)

    return jax.jit(jax.vmap(run))


def curve(losses: jax.Array, steps: int) -> dict[str, np.ndarray]:
    """Block means of losses [seeds, updates], and the number of steps at the end of each."""
    updates = losses.shape[1]
    blocks = np.array_split(np.asarray(losses), min(BLOCKS, updates), axis=1)
    ends = np.cumsum([b.shape[1] for b in blocks]) * (steps // updates)
    with np.errstate(all="ignore"):
        means = np.stack([b.mean(1) for b in blocks], axis=1)
    return {"steps": ends, "loss": np.where(means < 1e30, means, np.inf)}


def verdict(losses: np.ndarray) -> str:
    """Of curves [seeds, blocks] from a loss of about 1."""
    first, last = losses[:, 0], losses[:, -1]
    if (last < 1e-3 * first).all():
        return "converges"
    return "diverges" if (last > 10 * first).all() else "undecided"


def study(config: Config, tick: Callable[[str], None]) -> dict[str, Any]:
    """Curves, verdicts and the derivative that explains them."""
    steps = config.balancing_steps
    found: dict[str, dict[str, Any]] = {}
    d = np.asarray(influence(max(WINDOWS)))
    for k in WINDOWS:
        tick(f"k = {k}")
        (theta, _), losses = windows(k, steps)()
        found[f"truncated, {k}"] = {
            **curve(losses[None], steps // k * k),
            "theta": [float(theta)],
            "mean influence": float(d[:k].mean()),
            "why": "biased",
        }
    for name, (_, why) in ONLINE.items():
        if not config.takes(name):
            continue
        tick(name)
        seeds = config.balancing_seeds if name == "uoro" else 1
        (theta, _), losses = online(name, steps)(
            jax.random.split(jax.random.key(config.seed), seeds)
        )
        found[name] = {**curve(losses, steps), "theta": theta.tolist(), "why": why}
    for run in found.values():
        run["verdict"] = verdict(run["loss"])
    return {"influence": d, "runs": found}
