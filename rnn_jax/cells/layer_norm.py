"""Layer-normalised cells: the summed inputs have mean 0 and variance 1 over the units."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, initializers
from rnn_jax._activations import mix, sigmoid, tanh
from rnn_jax._remember import remembered
from rnn_jax._types import Array, Cell, Initializer, Key, wide
from rnn_jax.cells.lstm import LSTMState

EPSILON = 1e-5


def normalize(a: Array) -> Array:
    """(a - mean) / sqrt(variance + EPSILON) over the last axis, without gain and bias.

    Computed in float32 or wider: the square of a number in float16 may be beyond its largest, and
    so is the derivative of 1 / sqrt(EPSILON).

    Example:
      >>> print("%.4f %.4f %.4f" % tuple(normalize(jnp.array([1.0, 2.0, 3.0]))))
      -1.2247 0.0000 1.2247
    """
    dtype, a = a.dtype, a.astype(wide(a.dtype))
    centred = a - a.mean(axis=-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    return (centred * scale).astype(dtype)


class LayerNormElmanParams(NamedTuple):
    """Weights of `layer_norm_elman`."""

    w_x: Array  # [D, H]
    w_h: Array  # [H, H]
    gain: Array  # [H]
    b: Array  # [H]


@remembered
def layer_norm_elman(
    input_size: int,
    hidden_size: int,
    *,
    activation: Callable[[Array], Array] = tanh,
    w_x_init: Initializer = initializers.glorot_uniform(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.zeros,
    dtype: Any = float,
) -> Cell:
    """The vanilla recurrent cell with normalised summed inputs.

    h_t = f(gain * LN(x_t W_x + h_{t-1} W_h) + b),  y_t = h_t,  LN as in `normalize`

    Args:
      input_size: D.
      hidden_size: H.
      activation: f, any element-wise function.
      w_x_init: initializer of W_x.
      w_h_init: initializer of W_h.
      b_init: initializer of b; the gain starts at one.
      dtype: of the params; JAX's default float.

    Returns:
      A `Cell` with `LayerNormElmanParams` and the state h: [H]; x: [D], y: [H].

    Raises:
      ValueError: a size is not positive.

    Example:
      >>> cell = layer_norm_elman(2, 3)
      >>> params = cell.init(jax.random.key(0))._replace(w_x=jnp.arange(6.0).reshape(2, 3))
      >>> h, y = cell.step(params, cell.init_state(params), cell.project(params, jnp.ones(2)))
      >>> print("%.4f %.4f %.4f" % tuple(y))
      -0.8410 0.0000 0.8410

    References:
      Ba, Kiros, Hinton. Layer normalization. 2016 (equation 4).
    """
    D = _checks.positive_int("input_size", input_size)
    H = _checks.positive_int("hidden_size", hidden_size)

    def init(key: Key) -> LayerNormElmanParams:
        k_x, k_h, k_b = jax.random.split(key, 3)
        return LayerNormElmanParams(
            w_x=w_x_init(k_x, (D, H), dtype),
            w_h=w_h_init(k_h, (H, H), dtype),
            gain=jnp.ones(H, dtype),
            b=b_init(k_b, (H,), dtype),
        )

    def init_state(params: LayerNormElmanParams) -> Array:
        return jnp.zeros(H, params.w_h.dtype)

    def project(params: LayerNormElmanParams, x: Array) -> Array:
        _checks.input_vector(x, D, params.w_x.dtype)
        return x @ params.w_x

    def step(params: LayerNormElmanParams, h: Array, z: Array) -> tuple[Array, Array]:
        h = activation(params.gain * normalize(z + h @ params.w_h) + params.b)
        return h, h

    return Cell(init, init_state, project, step)


class LayerNormLSTMParams(NamedTuple):
    """Weights of `layer_norm_lstm`; the gates stand side by side in the order i, f, g, o."""

    w_x: Array  # [D, 4H]
    w_h: Array  # [H, 4H]
    b: Array  # [4H]
    gain_x: Array  # [4H]
    gain_h: Array  # [4H]
    gain_c: Array  # [H]
    b_c: Array  # [H]


@remembered
def layer_norm_lstm(
    input_size: int,
    hidden_size: int,
    *,
    w_x_init: Initializer = initializers.glorot_uniform(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.forget_bias(1.0),
    dtype: Any = float,
) -> Cell:
    """The LSTM with normalised projections and a normalised memory at the output.

    i, f, g, o = gain_x * LN(x W_x) + gain_h * LN(h W_h) + b
    c' = sigma(f) * c + sigma(i) * tanh(g)
    h' = sigma(o) * tanh(gain_c * LN(c') + b_c),  y = h'

    LN runs over all 4H units at once, as in the paper.

    Args:
      input_size: D.
      hidden_size: H.
      w_x_init: initializer of each gate's [D, H] block.
      w_h_init: initializer of each gate's [H, H] block.
      b_init: initializer of the whole bias [4H]; the gains start at one, b_c at zero.
      dtype: of the params; JAX's default float.

    Returns:
      A `Cell` with `LayerNormLSTMParams` and `LSTMState`; x: [D], y: [H].

    Raises:
      ValueError: a size is not positive.

    Example:
      >>> cell = layer_norm_lstm(2, 3)
      >>> params = cell.init(jax.random.key(0))
      >>> state, y = cell.step(params, cell.init_state(params), cell.project(params, jnp.ones(2)))
      >>> print(y.shape, state.c.shape)
      (3,) (3,)

    References:
      Ba, Kiros, Hinton. Layer normalization. 2016 (supplementary material, equations 20 to 22).

    Elsewhere: TensorFlow's `LayerNormBasicLSTMCell` normalises each gate on its own.
    """
    D = _checks.positive_int("input_size", input_size)
    H = _checks.positive_int("hidden_size", hidden_size)

    def init(key: Key) -> LayerNormLSTMParams:
        k_x, k_h, k_b = jax.random.split(key, 3)
        return LayerNormLSTMParams(
            w_x=initializers.per_gate(w_x_init, 4)(k_x, (D, 4 * H), dtype),
            w_h=initializers.per_gate(w_h_init, 4)(k_h, (H, 4 * H), dtype),
            b=b_init(k_b, (4 * H,), dtype),
            gain_x=jnp.ones(4 * H, dtype),
            gain_h=jnp.ones(4 * H, dtype),
            gain_c=jnp.ones(H, dtype),
            b_c=jnp.zeros(H, dtype),
        )

    def init_state(params: LayerNormLSTMParams) -> LSTMState:
        zeros = jnp.zeros(H, params.w_h.dtype)
        return LSTMState(h=zeros, c=zeros)

    def project(params: LayerNormLSTMParams, x: Array) -> Array:
        _checks.input_vector(x, D, params.w_x.dtype)
        return params.gain_x * normalize(x @ params.w_x) + params.b

    def step(params: LayerNormLSTMParams, state: LSTMState, z: Array) -> tuple[LSTMState, Array]:
        h, c = state
        i, f, g, o = jnp.split(z + params.gain_h * normalize(h @ params.w_h), 4)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(params.gain_c * normalize(c) + params.b_c)
        return LSTMState(h=h, c=c), h

    return Cell(init, init_state, project, step)


class LayerNormGRUParams(NamedTuple):
    """Weights of `layer_norm_gru`; the gates stand side by side in the order r, z, n."""

    w_x: Array  # [D, 3H]
    w_h: Array  # [H, 3H]
    b: Array  # [3H]
    b_n: Array  # [H], inside the reset
    gain_x: Array  # [3H]
    gain_h: Array  # [3H]


@remembered
def layer_norm_gru(
    input_size: int,
    hidden_size: int,
    *,
    w_x_init: Initializer = initializers.glorot_uniform(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.zeros,
    dtype: Any = float,
) -> Cell:
    """The GRU with normalised projections; its reset gate acts after the matrix product.

    a = gain_x * LN(x W_x) + b,  u = gain_h * LN(h W_h), LN over r and z together and over n
    r = sigma(a_r + u_r),  z = sigma(a_z + u_z)
    n = tanh(a_n + r * (u_n + b_hn))
    h' = z * h + (1 - z) * n,  y = h'

    Args:
      input_size: D.
      hidden_size: H.
      w_x_init: initializer of each gate's [D, H] block.
      w_h_init: initializer of each gate's [H, H] block.
      b_init: initializer of the whole bias [3H]; the gains start at one, b_hn at zero.
      dtype: of the params; JAX's default float.

    Returns:
      A `Cell` with `LayerNormGRUParams` and the state h: [H]; x: [D], y: [H].

    Raises:
      ValueError: a size is not positive.

    Example:
      >>> cell = layer_norm_gru(2, 3)
      >>> params = cell.init(jax.random.key(0))
      >>> h, y = cell.step(params, cell.init_state(params), cell.project(params, jnp.ones(2)))
      >>> print(y.shape)
      (3,)

    References:
      Ba, Kiros, Hinton. Layer normalization. 2016 (supplementary material, equations 23 to 25).
    """
    D = _checks.positive_int("input_size", input_size)
    H = _checks.positive_int("hidden_size", hidden_size)

    def init(key: Key) -> LayerNormGRUParams:
        k_x, k_h, k_b = jax.random.split(key, 3)
        return LayerNormGRUParams(
            w_x=initializers.per_gate(w_x_init, 3)(k_x, (D, 3 * H), dtype),
            w_h=initializers.per_gate(w_h_init, 3)(k_h, (H, 3 * H), dtype),
            b=b_init(k_b, (3 * H,), dtype),
            b_n=jnp.zeros(H, dtype),
            gain_x=jnp.ones(3 * H, dtype),
            gain_h=jnp.ones(3 * H, dtype),
        )

    def init_state(params: LayerNormGRUParams) -> Array:
        return jnp.zeros(H, params.w_h.dtype)

    def normalize_gates(a: Array) -> Array:
        return jnp.concatenate([normalize(a[: 2 * H]), normalize(a[2 * H :])])

    def project(params: LayerNormGRUParams, x: Array) -> Array:
        _checks.input_vector(x, D, params.w_x.dtype)
        return params.gain_x * normalize_gates(x @ params.w_x) + params.b

    def step(params: LayerNormGRUParams, h: Array, a: Array) -> tuple[Array, Array]:
        a_rz, a_n = jnp.split(a, [2 * H])
        u_rz, u_n = jnp.split(params.gain_h * normalize_gates(h @ params.w_h), [2 * H])
        r, z = map(sigmoid, jnp.split(a_rz + u_rz, 2))
        n = tanh(a_n + r * (u_n + params.b_n))
        h = mix(z, h, n)
        return h, h

    return Cell(init, init_state, project, step)
