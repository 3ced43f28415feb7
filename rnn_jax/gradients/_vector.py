"""Pytrees as real vectors: the leaves that have a tangent, complex ones as real, then imaginary."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, is_float


def ravel(tree: Any) -> Array:
    """[n] real; integers, flags and PRNG keys are left out."""
    floats = [a for a in jax.tree.leaves(tree) if is_float(a)]
    parts = [b for a in floats for b in ([a.real, a.imag] if _is_complex(a) else [a])]
    dtype = jnp.zeros(()).dtype if not parts else parts[0].dtype
    for part in parts[1:]:
        dtype = jnp.promote_types(dtype, part.dtype)
    return jnp.concatenate([jnp.zeros(0, dtype)] + [a.astype(dtype).ravel() for a in parts])


def unravel(vector: Array, like: Any) -> Any:
    """The pytree of a vector; what `ravel` leaves out is taken from `like`."""
    leaves, at = [], 0
    for a in jax.tree.leaves(like):
        if is_float(a):
            parts = []
            for _ in range(2 if _is_complex(a) else 1):
                parts.append(vector[at : at + a.size].reshape(a.shape).astype(a.real.dtype))
                at += a.size
            a = jax.lax.complex(*parts) if _is_complex(a) else parts[0]
        leaves.append(a)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def gradient(vector: Array, like: Any) -> Any:
    """The pytree of a gradient; by a complex z = x + iy it is dL/dx - i dL/dy, as in `jax.grad`."""
    return jax.tree.map(lambda a: a.conj() if _is_complex(a) else a, unravel(vector, like))


def _is_complex(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.complexfloating)
