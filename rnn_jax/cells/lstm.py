"""The long short-term memory: a cell state behind gates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, initializers
from rnn_jax._activations import sigmoid, tanh
from rnn_jax._remember import remembered
from rnn_jax._types import Array, Cell, Initializer, Key


class LSTMParams(NamedTuple):
    """Weights of `lstm`; the gates stand side by side in the order i, f, g, o."""

    w_x: Array  # [D, 4H]
    w_h: Array  # [H, 4H], [P, 4H] with a projection
    b: Array | None  # [4H], None without bias
    w_c: Array | None  # [3, H], peepholes of i, f, o; None without
    w_p: Array | None = None  # [H, P], the projection of the output; None without


class LSTMState(NamedTuple):
    """State of `lstm`."""

    h: Array  # [H], the output; [P] with a projection
    c: Array  # [H], the memory


@remembered
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    peepholes: bool = False,
    projection_size: int | None = None,
    w_x_init: Initializer = initializers.glorot_uniform(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.forget_bias(1.0),
    dtype: Any = float,
) -> Cell:
    """The LSTM with a forget gate, and with peepholes and a projection if wanted.

    i = sigma(x W_xi + h W_hi + p_i * c + b_i)
    f = sigma(x W_xf + h W_hf + p_f * c + b_f)
    g =  tanh(x W_xg + h W_hg           + b_g)
    c' = f * c + i * g
    o = sigma(x W_xo + h W_ho + p_o * c' + b_o)
    h' = o * tanh(c'),  y = h';  with a projection h' = (o * tanh(c')) W_p

    Args:
      input_size: D.
      hidden_size: H.
      bias: whether there are the b.
      peepholes: whether the gates see the memory, through the p; they start at zero.
      projection_size: P, the size of the output and of what the gates see of the past; None for
        H, without a projection.
      w_x_init: initializer of each gate's [D, H] block.
      w_h_init: initializer of each gate's [H, H] block.
      b_init: initializer of the whole bias [4H]: `initializers.forget_bias`,
        `initializers.chrono`, ...
      dtype: of the params; JAX's default float.

    Returns:
      A `Cell` with `LSTMParams` and `LSTMState`; x: [D], y: [H], or [P].

    Raises:
      ValueError: a size is not positive.

    Example:
      >>> cell = lstm(2, 3)
      >>> params = cell.init(jax.random.key(0))
      >>> print(params.w_h.shape, params.b)
      (3, 12) [0. 0. 0. 1. 1. 1. 0. 0. 0. 0. 0. 0.]
      >>> ones = jax.tree.map(jnp.ones_like, params)
      >>> state, y = cell.step(ones, cell.init_state(ones), cell.project(ones, jnp.zeros(2)))
      >>> print("%.4f %.4f" % (state.c[0], y[0]))
      0.5568 0.3696

    References:
      Hochreiter, Schmidhuber. Long short-term memory. 1997.
      Gers, Schmidhuber, Cummins. Learning to forget. 2000.
      Gers, Schmidhuber. Recurrent nets that time and count. 2000 (peepholes).
      Sak, Senior, Beaufays. Long short-term memory recurrent neural network architectures for
      large scale acoustic modeling. 2014 (the projection).

    Elsewhere: PyTorch and cuDNN have the same order of gates, two biases and transposed weights;
    Keras calls g "c"; Flax carries (c, h); Haiku adds 1 to the forget gate inside the forward
    pass instead of in the bias.
    """
    D = _checks.positive_int("input_size", input_size)
    H = _checks.positive_int("hidden_size", hidden_size)
    P = H if projection_size is None else _checks.positive_int("projection_size", projection_size)

    def init(key: Key) -> LSTMParams:
        k_x, k_h, k_b = jax.random.split(key, 3)
        projection = None
        if projection_size is not None:
            projection = w_x_init(jax.random.fold_in(key, 3), (H, P), dtype)
        return LSTMParams(
            w_x=initializers.per_gate(w_x_init, 4)(k_x, (D, 4 * H), dtype),
            w_h=initializers.per_gate(w_h_init, 4)(k_h, (P, 4 * H), dtype),
            b=b_init(k_b, (4 * H,), dtype) if bias else None,
            w_c=jnp.zeros((3, H), dtype) if peepholes else None,
            w_p=projection,
        )

    def init_state(params: LSTMParams) -> LSTMState:
        dtype = params.w_h.dtype
        return LSTMState(h=jnp.zeros(P, dtype), c=jnp.zeros(H, dtype))

    def project(params: LSTMParams, x: Array) -> Array:
        _checks.input_vector(x, D, params.w_x.dtype)
        z = x @ params.w_x
        return z if params.b is None else z + params.b

    def step(params: LSTMParams, state: LSTMState, z: Array) -> tuple[LSTMState, Array]:
        h, c = state
        i, f, g, o = jnp.split(z + h @ params.w_h, 4)
        if params.w_c is not None:
            i, f = i + params.w_c[0] * c, f + params.w_c[1] * c
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        if params.w_c is not None:
            o = o + params.w_c[2] * c
        h = sigmoid(o) * tanh(c)
        if params.w_p is not None:
            h = h @ params.w_p
        return LSTMState(h=h, c=c), h

    return Cell(init, init_state, project, step)
