"""The length of vectors."""

import jax
import jax.numpy as jnp

from rnn_jax._types import Array


def norm(vector: Array) -> Array:
    """[...]: the length of the vectors in the last axis, however small; its gradient at 0 is 0."""
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(vector), axis=-1, initial=0))
    scale = jnp.where(peak > 0, peak, jnp.ones_like(peak))
    square = jnp.sum((vector / scale[..., None]) ** 2, axis=-1)
    safe = jnp.where(square > 0, square, jnp.ones_like(square))
    return jnp.where(square > 0, scale * jnp.sqrt(safe), jnp.zeros_like(square))
