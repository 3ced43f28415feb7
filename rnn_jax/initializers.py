"""Initializers: ``(key, shape, dtype) -> array``, the signature of `jax.nn.initializers`.

Cells draw every gate on its own: an initializer is called once for each [D, H] or [H, H] block,
so that each gate's recurrent matrix is orthogonal, not just all of them side by side. Biases are
drawn whole, because what a bias means depends on its gate.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, Initializer, Key, wide


def zeros(key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """Zeros, whatever the key."""
    del key
    return jnp.zeros(shape, dtype)


def glorot_uniform() -> Initializer:
    """Uniform in +-sqrt(6 / (rows + columns)), for each gate's block on its own.

    Example:
      >>> w = glorot_uniform()(jax.random.key(0), (100, 200), jnp.float32)
      >>> print("%.2f" % jnp.abs(w).max())
      0.14

    References:
      Glorot, Bengio. Understanding the difficulty of training deep feedforward neural networks.
      2010.
    """
    return jax.nn.initializers.glorot_uniform()


def orthogonal(scale: float = 1.0) -> Initializer:
    """Random orthogonal matrices times `scale` (semi-orthogonal if not square).

    Computed in float32 or wider: the QR decomposition has no half-precision kernel.

    Args:
      scale: all singular values of the result.

    Returns:
      An initializer for shapes with two axes.

    Example:
      >>> w = orthogonal()(jax.random.key(0), (3, 3), jnp.float32)
      >>> print(jnp.round(jnp.abs(w @ w.T - jnp.eye(3)).max(), 5))
      0.0

    References:
      Saxe, McClelland, Ganguli. Exact solutions to the nonlinear dynamics of learning in deep
      linear neural networks. 2014.
    """
    draw = jax.nn.initializers.orthogonal(scale)

    def init(key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
        return draw(key, shape, wide(dtype)).astype(dtype)

    return init


def identity(scale: float = 1.0) -> Initializer:
    """The identity matrix times `scale`: the recurrent matrix of a ReLU network (IRNN).

    Example:
      >>> print(identity(0.5)(jax.random.key(0), (2, 2), jnp.float32))
      [[0.5 0. ]
       [0.  0.5]]

    References:
      Le, Jaitly, Hinton. A simple way to initialize recurrent networks of rectified linear units.
      2015.
    """

    def init(key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
        del key
        rows, columns = shape
        return scale * jnp.eye(rows, columns, dtype=dtype)

    return init


def forget_bias(value: float = 1.0) -> Initializer:
    """The bias of an LSTM, shape [4H]: `value` for the forget gate, zero for i, g and o.

    Example:
      >>> print(forget_bias(1.0)(jax.random.key(0), (8,), jnp.float32))
      [0. 0. 1. 1. 0. 0. 0. 0.]

    References:
      Gers, Schmidhuber, Cummins. Learning to forget. 2000.
      Jozefowicz, Zaremba, Sutskever. An empirical exploration of recurrent network architectures.
      2015 (value 1).
    """

    def init(key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
        del key
        return jnp.zeros((4, _gate_size(shape)), dtype).at[1].set(value).reshape(shape)

    return init


def chrono(max_lag: int) -> Initializer:
    """The bias of an LSTM, shape [4H], for dependencies of up to `max_lag` steps.

    b_f ~ log U(1, max_lag - 1), b_i = -b_f, and zero for g and o: the cell forgets with
    characteristic times spread between 1 and `max_lag` steps. Drawn in float32 or wider: bfloat16
    has 128 different lags only.

    Args:
      max_lag: the longest expected dependency in time steps, at least 3.

    Raises:
      ValueError: `max_lag` is below 3.

    Example:
      >>> b = chrono(100)(jax.random.key(0), (8,), jnp.float32)
      >>> bool((b[2:4] > 0).all()), bool((b[:2] == -b[2:4]).all()), float(b[4:].sum())
      (True, True, 0.0)

    References:
      Tallec, Ollivier. Can recurrent neural networks warp time? 2018.
    """
    if _checks.positive_int("max_lag", max_lag) < 3:
        raise ValueError(f"max_lag: got {max_lag}, expected at least 3 time steps")

    def init(key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
        lags = jax.random.uniform(key, (_gate_size(shape),), wide(dtype), 1.0, max_lag - 1.0)
        f = jnp.log(lags).astype(dtype)
        return jnp.concatenate([-f, f, jnp.zeros_like(f), jnp.zeros_like(f)])

    return init


def per_gate(initializer: Initializer, gates: int) -> Initializer:
    """Draws `gates` blocks of shape [rows, columns / gates] on their own, side by side.

    Example:
      >>> w = per_gate(orthogonal(), 4)(jax.random.key(0), (3, 12), jnp.float32)
      >>> gate = w[:, 3:6]
      >>> print(jnp.round(jnp.abs(gate @ gate.T - jnp.eye(3)).max(), 5))
      0.0
    """

    def init(key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
        *rows, columns = shape
        if columns % gates:
            raise ValueError(f"shape: got {shape}, expected a multiple of {gates} columns")
        block = (*rows, columns // gates)
        return jnp.concatenate(
            [initializer(k, block, dtype) for k in jax.random.split(key, gates)], axis=-1
        )

    return init


def _gate_size(shape: tuple[int, ...]) -> int:
    columns = math.prod(shape)
    if len(shape) != 1 or columns % 4:
        raise ValueError(f"shape: got {shape}, expected (4H,), the bias of an LSTM")
    return columns // 4
