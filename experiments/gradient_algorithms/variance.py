"""The noise of one draw of each unbiased estimate, and what it costs to average it away."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import rnn_jax
from experiments.gradient_algorithms.config import Config
from experiments.gradient_algorithms.nets import D, flat, loss, quartiles, random_problem
from experiments.gradient_algorithms.timing import medians
from rnn_jax import gradients

ESTIMATES: dict[str, Callable[..., Any]] = {
    "uoro": gradients.uoro,
    "kf_rtrl": gradients.kf_rtrl,
    "ok, rank 1": functools.partial(gradients.ok, rank=1),
    "ok, rank 4": functools.partial(gradients.ok, rank=4),
    "forward_gradient": gradients.forward_gradient,
    "artbp": gradients.artbp,
    "randomized_telescope": gradients.randomized_telescope,
}
# Of an earlier prototype on other nets of this kind, not published anywhere. Its uoro estimated
# the immediate influence too: with an exact one it had 2.90 in place of 4.26, 11.3 of 13.6.
EARLIER = {
    "uoro": {(8, 10): 3.8, (8, 50): 4.26, (32, 50): 13.6},
    "kf_rtrl": {(8, 50): 1.42, (32, 50): 2.29},
    "ok, rank 1": {(8, 50): 1.36, (32, 50): 2.20},
    "ok, rank 4": {(8, 50): 0.26, (32, 50): 0.81},
}


def relative_std(name: str, n: int, T: int, draws: int) -> Callable[[jax.Array], jax.Array]:
    """``(key) -> []``: root of the mean of |g - E g|^2, over |E g|, of a random net."""
    cell = rnn_jax.elman(D, n)
    run, exact = ESTIMATES[name](cell, loss), gradients.bptt(cell, loss)

    def measure(key: jax.Array) -> jax.Array:
        k_problem, k_draws = jax.random.split(key)
        params, xs, targets = random_problem(k_problem, n, T)
        truth = flat(exact(params, None, xs, targets)[1])

        def square(key: jax.Array) -> jax.Array:
            g = flat(run(params, None, xs, targets, key=key)[1])
            return ((g - truth) ** 2).sum() / (truth**2).sum()

        return jax.lax.map(square, jax.random.split(k_draws, draws), batch_size=100).mean() ** 0.5

    return measure


def programs(names: list[str], n: int, T: int) -> dict[str, Callable[[], Any]]:
    """One draw of each, compiled; and the exact gradient."""
    cell, (params, xs, targets) = rnn_jax.elman(D, n), random_problem(jax.random.key(0), n, T)
    found: dict[str, Callable[[], Any]] = {}
    for name in ("bptt", *names):
        algorithm = gradients.bptt if name == "bptt" else ESTIMATES[name]
        run = jax.jit(algorithm(cell, loss)).lower(params, None, xs, targets, key=jax.random.key(1))
        found[name] = functools.partial(
            run.compile(), params, None, xs, targets, key=jax.random.key(1)
        )
    return found


def study(config: Config, tick: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each shape and estimate."""
    keys, rows = jax.random.split(jax.random.key(config.seed), config.nets), []
    names = [name for name in ESTIMATES if config.takes(name)]
    for n, T in config.variance_shapes:
        tick(f"times, n = {n}, T = {T}")
        seconds = medians(programs(names, n, T), config.rounds)
        for name in names:
            tick(f"{name}, n = {n}, T = {T}")
            measure = relative_std(name, n, T, config.variance_draws)
            with jax.enable_x64(True):
                std = jax.jit(lambda keys, f=measure: quartiles(jax.lax.map(f, keys)))(keys)
            time = seconds[name] / seconds["bptt"]
            row = {"n": n, "T": T, "name": name, "std": np.asarray(std), "time": time}
            rows.append(row | {"work": time * float(std[1]) ** 2})
    return rows
