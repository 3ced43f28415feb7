"""The part of a pytree that has a derivative, as one real vector."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, is_float


def ravel(tree: Any) -> Array:
    """[n], float32 or wider: the floats of `tree`, leaf after leaf; complex ones as pairs."""
    floats = [_real(a) for a in jax.tree.leaves(tree) if is_float(a)]
    widest: Any = max([jnp.dtype(jnp.float32), *(a.dtype for a in floats)], key=_bits)
    parts = [a.ravel().astype(widest) for a in floats]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, widest)


def unravel(vector: Array, like: Any) -> Any:
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


def gradient(vector: Array, like: Any) -> Any:
    """The pytree of a gradient; by a complex z = x + iy it is dL/dx - i dL/dy, as in `jax.grad`."""
    grads = unravel(vector, like)
    return jax.tree.map(lambda a: a.conj() if jnp.iscomplexobj(a) else a, grads)


def _real(a: Array) -> Array:
    return jnp.stack([a.real, a.imag], axis=-1) if jnp.iscomplexobj(a) else a


def _bits(dtype: Any) -> int:
    return jnp.finfo(dtype).bits
