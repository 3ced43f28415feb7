"""The part of a pytree that has a derivative, as one real vector."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, is_float


def to_vector(tree: Any) -> Array:
    """[n], float32 or wider: the floats of `tree`, leaf after leaf; complex ones as pairs."""
    floats = [_real(a) for a in jax.tree.leaves(tree) if is_float(a)]
    widest: Any = max([jnp.dtype(jnp.float32), *(a.dtype for a in floats)], key=_bits)
    parts = [a.ravel().astype(widest) for a in floats]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, widest)


def from_vector(vector: Array, like: Any) -> Any:
    """The pytree `like` with the floats of `vector`; its other leaves stay."""
    leaves, start = [], 0
    for a in jax.tree.leaves(like):
        if is_float(a):
            real = jax.eval_shape(_real, a)
            part = vector[start : start + real.size].reshape(real.shape).astype(real.dtype)
            start += real.size
            a = jax.lax.complex(part[..., 0], part[..., 1]) if jnp.iscomplexobj(a) else part
        leaves.append(a)
    tree: Any = jax.tree.structure(like)
    return tree.unflatten(leaves)


def norm(vector: Array) -> Array:
    """[...]: the length of the vectors in the last axis, however small; its gradient at 0 is 0."""
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(vector), axis=-1, initial=0))
    scale = jnp.where(peak > 0, peak, jnp.ones_like(peak))
    square = jnp.sum((vector / scale[..., None]) ** 2, axis=-1)
    safe = jnp.where(square > 0, square, jnp.ones_like(square))
    return jnp.where(square > 0, scale * jnp.sqrt(safe), jnp.zeros_like(square))


def _real(a: Array) -> Array:
    return jnp.stack([a.real, a.imag], axis=-1) if jnp.iscomplexobj(a) else a


def _bits(dtype: Any) -> int:
    return jnp.finfo(dtype).bits
