"""The nets and the algorithms that several parts share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import rnn_jax
from experiments.harness.measure import Program
from rnn_jax.gradients import REGISTER

D = 4  # inputs of the random tanh nets
SMALL = 2, 3  # inputs and outputs of the cells


def diagonal(D: int, H: int) -> rnn_jax.Cell:
    """h' = tanh(a * h + x @ w): no unit sees another, and there is no recurrent matrix."""

    def step(params: Any, h: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(params["a"] * h + z)
        return h, h

    return rnn_jax.Cell(
        init=lambda key: {"a": jnp.full(H, 0.5), "w": jnp.ones((D, H))},
        init_state=lambda params: jnp.zeros_like(params["a"]),
        project=lambda params, x: x @ params["w"],
        step=step,
    )


CELLS = {name: make(*SMALL) for name, make in rnn_jax.ALL_CELLS.items()} | {
    "stack": rnn_jax.stack([rnn_jax.gru_reset_after(SMALL[0], 2), rnn_jax.elman(2, SMALL[1])]),
    "readout": rnn_jax.readout(rnn_jax.lstm(SMALL[0], 2), SMALL[1]),
    "diagonal": diagonal(*SMALL),
}


class Problem(NamedTuple):
    """A net and a sequence."""

    params: Any
    xs: jax.Array  # [T, D]
    targets: jax.Array  # [T, n]


def random_problem(key: jax.Array, n: int, T: int) -> Problem:
    """An Elman net of n units with recurrent weights of spectral radius near 1; all is normal."""
    k_x, k_h, k_b, k_xs, k_ys = jax.random.split(key, 5)
    params = rnn_jax.ElmanParams(
        w_x=jax.random.normal(k_x, (D, n)) / D**0.5,
        w_h=jax.random.normal(k_h, (n, n)) / n**0.5,
        b=jax.random.normal(k_b, (n,)) / 10,
    )
    return Problem(params, jax.random.normal(k_xs, (T, D)), jax.random.normal(k_ys, (T, n)))


def loss(y: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error of a step."""
    return jnp.sum((y - target) ** 2) / 2


def algorithm(name: str, cell: rnn_jax.Cell, **options: Any) -> Any:
    """An algorithm of the register, whose options these go over."""
    return REGISTER[name].algorithm(cell, loss, **REGISTER[name].options | options)


def gradient(name: str, cell: rnn_jax.Cell, **options: Any) -> Callable[..., jax.Array]:
    """``(problem, key=None) -> [P]``: the gradient alone, of a sequence from its first state."""
    run = algorithm(name, cell, **options)

    def grads(given: Problem, key: jax.Array | None = None) -> jax.Array:
        return ravel_pytree(run(given.params, None, given.xs, given.targets, key=key)[1])[0]

    return grads


def program(name: str, n: int, T: int, **options: Any) -> Program:
    """An algorithm on a random net, compiled."""
    run = jax.jit(algorithm(name, rnn_jax.elman(D, n), **options))
    params, xs, targets = random_problem(jax.random.key(0), n, T)
    return Program(run, params, None, xs, targets, key=jax.random.key(1))


def relative(a: jax.Array, b: jax.Array) -> jax.Array:
    """The norm of the difference over the norm of b."""
    return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
