"""What truncation leaves out, against its length; and what the local rules do, for comparison."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import rnn_jax
from experiments.gradient_algorithms.config import Config
from experiments.gradient_algorithms.nets import (
    D,
    Problem,
    flat,
    loss,
    quartiles,
    random_problem,
    relative,
)
from rnn_jax import gradients

T = 16
EARLIER = {  # of an earlier prototype on another net of this kind, not published
    "k1 = 1": {1: 0.66, 2: 0.50, 4: 0.32, 8: 0.14, 12: 0.023, 16: 0.0},
    "k1 = k2": {1: 0.66, 2: 0.59, 4: 0.41, 8: 0.38, 16: 0.0},
}
OTHERS = {"snap": {"n": 1}, "e_prop": {}}


def study(config: Config, tick: Callable[[str], None]) -> dict[str, Any]:
    """Quartiles over the nets of the relative error: [lengths, 3] of each kind, [3] of others."""
    cell = rnn_jax.elman(D, config.bias_units)
    keys = jax.random.split(jax.random.key(config.seed), 4 * config.nets)
    problems = jax.vmap(lambda key: random_problem(key, config.bias_units, T))(keys)

    def error(name: str, **options: Any) -> np.ndarray:
        tick(f"{name} {' '.join(f'{k} = {v}' for k, v in options.items())}")
        run = gradients.REGISTER[name].algorithm(cell, loss, **options)

        def one(problem: Problem) -> jax.Array:
            params, xs, targets = problem
            exact = gradients.bptt(cell, loss)(params, None, xs, targets)[1]
            return relative(flat(run(params, None, xs, targets)[1]), flat(exact))

        return np.asarray(jax.jit(lambda p: quartiles(jax.vmap(one)(p)))(problems))

    sliding = [error("truncated_bptt", k1=1, k2=k) for k in config.lengths]
    chunks = [error("truncated_bptt", k1=k, k2=k) for k in config.lengths]
    others = {
        name: error(name, **options) for name, options in OTHERS.items() if config.takes(name)
    }
    return {"lengths": config.lengths, "k1 = 1": sliding, "k1 = k2": chunks, "others": others}
