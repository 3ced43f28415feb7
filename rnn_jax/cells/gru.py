"""Gated recurrent units: the reset before the recurrent product, or after it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, initializers
from rnn_jax._activations import mix, sigmoid, tanh
from rnn_jax._remember import remembered
from rnn_jax._types import Array, Cell, Initializer, Key


class GRUParams(NamedTuple):
    """Weights of both GRUs; the gates stand side by side in the order r, z, n."""

    w_x: Array  # [D, 3H]
    w_h: Array  # [H, 3H]
    b: Array | None  # [3H], None without bias
    b_n: Array | None  # [H], inside the reset; only `gru_reset_after` with bias has it


@remembered
def gru(
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    w_x_init: Initializer = initializers.glorot_uniform(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.zeros,
    dtype: Any = float,
) -> Cell:
    """The GRU as published: the reset gate acts on h before the matrix product.

    r = sigma(x W_xr + h W_hr + b_r)
    z = sigma(x W_xz + h W_hz + b_z)
    n =  tanh(x W_xn + (r * h) W_hn + b_n)
    h' = z * h + (1 - z) * n,  y = h'

    Args:
      input_size: D.
      hidden_size: H.
      bias: whether there are the b.
      w_x_init: initializer of each gate's [D, H] block.
      w_h_init: initializer of each gate's [H, H] block.
      b_init: initializer of the whole bias [3H].
      dtype: of the params; JAX's default float.

    Returns:
      A `Cell` with `GRUParams` and the state h: [H]; x: [D], y: [H].

    Raises:
      ValueError: a size is not positive.

    Example:
      >>> cell = gru(2, 3)
      >>> params = jax.tree.map(jnp.ones_like, cell.init(jax.random.key(0)))
      >>> h, y = cell.step(params, cell.init_state(params), cell.project(params, jnp.zeros(2)))
      >>> print("%.4f %.4f %.4f" % tuple(y))
      0.2048 0.2048 0.2048

    References:
      Cho et al. Learning phrase representations using RNN encoder-decoder for statistical machine
      translation. 2014 (arXiv version 3; z keeps the past, as here).

    Elsewhere: Haiku has the same equations with z and 1 - z exchanged and the gates in the order
    z, r, n; Keras has them with ``reset_after=False`` in the order z, r, n.
    """
    D = _checks.positive_int("input_size", input_size)
    H = _checks.positive_int("hidden_size", hidden_size)

    def init(key: Key) -> GRUParams:
        return _init(key, D, H, w_x_init, w_h_init, b_init if bias else None, dtype)

    def step(params: GRUParams, h: Array, a: tuple[Array, Array]) -> tuple[Array, Array]:
        a_rz, a_n = a
        r, z = map(sigmoid, jnp.split(a_rz + h @ params.w_h[:, : 2 * H], 2))
        n = tanh(a_n + (r * h) @ params.w_h[:, 2 * H :])
        h = mix(z, h, n)
        return h, h

    return Cell(init, _init_state(H), _project(D), step)


@remembered
def gru_reset_after(
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    w_x_init: Initializer = initializers.glorot_uniform(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.zeros,
    dtype: Any = float,
) -> Cell:
    """The GRU of cuDNN, PyTorch, Keras and Flax: the reset gate acts after the matrix product.

    r = sigma(x W_xr + h W_hr + b_r)
    z = sigma(x W_xz + h W_hz + b_z)
    n =  tanh(x W_xn + r * (h W_hn + b_hn) + b_n)
    h' = z * h + (1 - z) * n,  y = h'

    No product has to wait for the reset gate. Arguments, result and errors are those
    of `gru`; b_hn starts at zero.

    Example:
      >>> cell = gru_reset_after(2, 3)
      >>> params = jax.tree.map(jnp.ones_like, cell.init(jax.random.key(0)))
      >>> h, y = cell.step(params, cell.init_state(params), cell.project(params, jnp.zeros(2)))
      >>> print("%.4f %.4f %.4f" % tuple(y))
      0.2526 0.2526 0.2526

    References:
      Cho et al. Learning phrase representations using RNN encoder-decoder for statistical machine
      translation. 2014 (arXiv version 1).

    Elsewhere: PyTorch and cuDNN keep a second bias for r and z too, which adds to the first;
    Flax nnx has no b_hn.
    """
    D = _checks.positive_int("input_size", input_size)
    H = _checks.positive_int("hidden_size", hidden_size)

    def init(key: Key) -> GRUParams:
        params = _init(key, D, H, w_x_init, w_h_init, b_init if bias else None, dtype)
        return params._replace(b_n=jnp.zeros(H, dtype)) if bias else params

    def step(params: GRUParams, h: Array, a: tuple[Array, Array]) -> tuple[Array, Array]:
        a_rz, a_n = a
        u_rz, u_n = h @ params.w_h[:, : 2 * H], h @ params.w_h[:, 2 * H :]
        r, z = map(sigmoid, jnp.split(a_rz + u_rz, 2))
        n = tanh(a_n + r * (u_n if params.b_n is None else u_n + params.b_n))
        h = mix(z, h, n)
        return h, h

    return Cell(init, _init_state(H), _project(D), step)


def _init(
    key: Key,
    D: int,
    H: int,
    w_x_init: Initializer,
    w_h_init: Initializer,
    b_init: Initializer | None,
    dtype: Any,
) -> GRUParams:
    k_x, k_h, k_b = jax.random.split(key, 3)
    return GRUParams(
        w_x=initializers.per_gate(w_x_init, 3)(k_x, (D, 3 * H), dtype),
        w_h=initializers.per_gate(w_h_init, 3)(k_h, (H, 3 * H), dtype),
        b=None if b_init is None else b_init(k_b, (3 * H,), dtype),
        b_n=None,
    )


def _init_state(H: int) -> Any:
    return lambda params: jnp.zeros(H, params.w_h.dtype)


def _project(D: int) -> Any:
    def project(params: GRUParams, x: Array) -> tuple[Array, Array]:
        _checks.input_vector(x, D, params.w_x.dtype)
        rz = 2 * (params.w_x.shape[1] // 3)
        a_rz, a_n = x @ params.w_x[:, :rz], x @ params.w_x[:, rz:]
        return (a_rz, a_n) if params.b is None else (a_rz + params.b[:rz], a_n + params.b[rz:])

    return project
