"""What enters with a sequence: numbers become arrays, and padding becomes harmless."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, Cell, Params, State, is_float, vary, varying_axes


def initial(cell: Cell, params: Params) -> State:
    """The initial state as arrays that vary as the params do; a cell may give plain numbers."""
    state = jax.tree.map(jnp.asarray, cell.init_state(params))
    return vary(state, varying_axes(params))


def check_params(cell: Cell, params: Params) -> None:
    """Compares params with those that the cell makes, unless its `init` cannot be traced."""
    try:
        expected = jax.eval_shape(cell.init, jax.random.key(0))
    except Exception:  # whatever a user's init does with NumPy or files: it is not needed here
        return
    hint = "They come from the init of this cell; map stacked params over their axis with jax.vmap."
    _checks.same_shapes("params", params, expected, hint)


def padded(tree: Any, mask: Array | None) -> Any:
    """`tree` with what the nearest valid step before, or the first one, holds in masked steps.

    A cell may be singular at any number that it was not given, zero included, and 0 times an
    infinite slope is NaN: so the padding is what the cell is known to take. No gradient flows to
    it.

    Args:
      tree: arrays with the leading axis T.
      mask: [T] bool, None for all valid.
    """
    if mask is None or mask.shape[0] == 0:
        return tree
    steps = jnp.arange(mask.shape[0], dtype=jnp.int32)
    before = jax.lax.cummax(jnp.where(mask, steps, -1))
    source = jnp.where(before < 0, jnp.argmax(mask).astype(jnp.int32), before)
    some = mask.any()

    def fill(a: Array) -> Array:
        valid = mask.reshape(mask.shape + (1,) * (a.ndim - 1))
        return jnp.where(valid, a, jax.lax.stop_gradient(harmless(a[source], some)))

    return jax.tree.map(fill, tree)


def harmless(tree: Any, valid: Array) -> Any:
    """`tree`, or, where it is not valid, numbers that most functions take: the finite ones that it
    has, a half, and zero for integers, which is always a token."""

    def one(a: Array) -> Array:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return a
        if is_float(a):
            return jnp.where(valid | jnp.isfinite(a), a, jnp.full_like(a, 0.5))
        return jnp.where(valid, a, jnp.zeros_like(a))

    return jax.tree.map(one, tree)
