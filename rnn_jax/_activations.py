"""The parts of gated cells, written so that little is kept for the backward pass.

`jax.nn.sigmoid` and `jnp.tanh` keep their derivative beside their value, an array for each gate and
step. On a CPU the time of a small net is the time to write and read these arrays.
"""

import jax
import jax.numpy as jnp

from rnn_jax._types import Array


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); its derivative is s (1 - s)."""
    return jax.lax.logistic(x)


@sigmoid.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    s = sigmoid(primals[0])
    ds = s * tangents[0]
    return s, ds - s * ds


@jax.custom_jvp
def tanh(x: Array) -> Array:
    """tanh(x); its derivative is 1 - s^2."""
    return jnp.tanh(x)


@tanh.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    s = tanh(primals[0])
    return s, tangents[0] - s * (s * tangents[0])


def mix(z: Array, a: Array, b: Array) -> Array:
    """z * a + (1 - z) * b; it keeps z and a - b, where the sum as written keeps z, 1 - z, a, b."""
    return b + z * (a - b)
