"""The random tanh nets that several parts share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import rnn_jax

D = 4


class Problem(NamedTuple):
    """A net and a sequence."""

    params: Any
    xs: jax.Array  # [T, D]
    targets: jax.Array  # [T, n]


def loss(y: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error of a step."""
    return jnp.sum((y - target) ** 2) / 2


def random_problem(key: jax.Array, n: int, T: int) -> Problem:
    """An Elman net of n units with recurrent weights of spectral radius near 1; all is normal."""
    k_x, k_h, k_b, k_xs, k_ys = jax.random.split(key, 5)
    params = rnn_jax.ElmanParams(
        w_x=jax.random.normal(k_x, (D, n)) / D**0.5,
        w_h=jax.random.normal(k_h, (n, n)) / n**0.5,
        b=jax.random.normal(k_b, (n,)) / 10,
    )
    return Problem(params, jax.random.normal(k_xs, (T, D)), jax.random.normal(k_ys, (T, n)))


def flat(tree: Any) -> jax.Array:
    """All numbers of a pytree, [P]."""
    return ravel_pytree(tree)[0]


def relative(a: jax.Array, b: jax.Array) -> jax.Array:
    """The norm of the difference over the norm of b."""
    return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of the angle between two vectors."""
    return a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)


def quartiles(values: jax.Array) -> jax.Array:
    """Lower quartile, median and upper quartile over the first axis."""
    return jnp.quantile(values, jnp.array([0.25, 0.5, 0.75]), axis=0)
