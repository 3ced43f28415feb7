"""The derivative of each state with respect to the one before."""

from typing import Any

import jax

from rnn_jax._types import Array, Cell, Params, State
from rnn_jax.diagnostics import _steps
from rnn_jax.gradients._vector import ravel, unravel


def jacobians(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
) -> Array:
    """D_t = dh_t/dh_{t-1}, for every step at once: D[t, i, j] = dh_t[i] / dh_{t-1}[j].

    Args:
      cell: any `Cell`.
      params, state, xs, mask, reset: as in `rnn_jax.unroll`.

    Returns:
      [T, n, n], float32 or wider, in the order of the leaves of the state. The identity at masked
      steps; zero at a reset.

    Raises:
      ValueError, TypeError: as `rnn_jax.unroll`.

    Example:
      h_t = tanh(h_{t-1} W + x_t), so that D_t = (1 - h_t^2) W^T:

      >>> import rnn_jax
      >>> import jax.numpy as jnp
      >>> cell = rnn_jax.elman(2, 2, bias=False)
      >>> w_h = jnp.array([[0.5, -1.0], [2.0, 0.0]])
      >>> params = rnn_jax.ElmanParams(w_x=jnp.eye(2), w_h=w_h, b=None)
      >>> print(jacobians(cell, params, None, jnp.zeros((1, 2))))
      [[[ 0.5  2. ]
        [-1.   0. ]]]
    """
    state, inputs = _steps.prepare(cell, params, state, xs, mask, reset)
    states = _steps.states_before(cell, params, state, inputs)

    def local(old: State, now: _steps.Inputs) -> Array:
        def run(v: Array) -> Array:
            return ravel(_steps.step(cell, params, unravel(v, old), now)[0])

        return jax.jacrev(run)(ravel(old))

    return jax.vmap(local)(states, inputs)
