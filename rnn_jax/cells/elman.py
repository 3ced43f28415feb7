"""The simple recurrent network: one layer that sees its own past."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, initializers
from rnn_jax._activations import tanh
from rnn_jax._remember import remembered
from rnn_jax._types import Array, Cell, Initializer, Key


class ElmanParams(NamedTuple):
    """Weights of `elman`; row vectors, as in ``x @ w_x``."""

    w_x: Array  # [D, H]
    w_h: Array  # [H, H]
    b: Array | None  # [H], None without bias


@remembered
def elman(
    input_size: int,
    hidden_size: int,
    *,
    activation: Callable[[Array], Array] = tanh,
    bias: bool = True,
    w_x_init: Initializer = initializers.glorot_uniform(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.zeros,
    dtype: Any = float,
) -> Cell:
    """The vanilla recurrent cell of Elman.

    h_t = f(x_t W_x + h_{t-1} W_h + b),  y_t = h_t

    Args:
      input_size: D.
      hidden_size: H.
      activation: f, any element-wise function: `jnp.tanh`, `jax.nn.relu` (with
        ``w_h_init=initializers.identity()`` an IRNN), `jax.nn.identity` (a linear network), ...
      bias: whether there is b.
      w_x_init: initializer of W_x.
      w_h_init: initializer of W_h.
      b_init: initializer of b.
      dtype: of the params; JAX's default float.

    Returns:
      A `Cell` with `ElmanParams` and the state h: [H]; x: [D], y: [H].

    Raises:
      ValueError: a size is not positive.

    Example:
      >>> cell = elman(2, 3)
      >>> params = ElmanParams(w_x=jnp.ones((2, 3)), w_h=jnp.eye(3), b=jnp.zeros(3))
      >>> h = cell.init_state(params)
      >>> h, y = cell.step(params, h, cell.project(params, jnp.array([0.5, -0.25])))
      >>> print("%.4f %.4f %.4f" % tuple(y))
      0.2449 0.2449 0.2449

    References:
      Elman. Finding structure in time. 1990.

    Elsewhere: PyTorch and cuDNN keep two biases, whose sum is b; Flax's `SimpleCell` keeps one.
    """
    D = _checks.positive_int("input_size", input_size)
    H = _checks.positive_int("hidden_size", hidden_size)

    def init(key: Key) -> ElmanParams:
        k_x, k_h, k_b = jax.random.split(key, 3)
        return ElmanParams(
            w_x=w_x_init(k_x, (D, H), dtype),
            w_h=w_h_init(k_h, (H, H), dtype),
            b=b_init(k_b, (H,), dtype) if bias else None,
        )

    def init_state(params: ElmanParams) -> Array:
        return jnp.zeros(H, params.w_h.dtype)

    def project(params: ElmanParams, x: Array) -> Array:
        _checks.input_vector(x, D, params.w_x.dtype)
        z = x @ params.w_x
        return z if params.b is None else z + params.b

    def step(params: ElmanParams, h: Array, z: Array) -> tuple[Array, Array]:
        h = activation(z + h @ params.w_h)
        return h, h

    return Cell(init, init_state, project, step)
