"""Keras on the JAX backend: gates i f c o and z r h; the GRU has two rows of biases, or one.

On the JAX backend Keras computes in float32, whatever dtype a layer is given.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from peers import D, H, Peer, T, single

LIBRARY = "keras"


def simple(rng: np.random.Generator) -> Peer:
    return _peer(rng, "SimpleRNN", rnn_jax.elman(D, H), lambda w: rnn_jax.ElmanParams(*w))


def lstm(rng: np.random.Generator) -> Peer:
    return _peer(rng, "LSTM", rnn_jax.lstm(D, H), lambda w: rnn_jax.LSTMParams(*w, w_c=None))


def gru(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:
        return rnn_jax.GRUParams(*map(_reorder, w), b_n=None)

    return _peer(rng, "GRU", rnn_jax.gru(D, H), to_params, reset_after=False)


def gru_reset_after(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:
        kernel, recurrent, biases = map(_reorder, w)
        b_x, b_h = biases
        b = b_x + b_h.at[2 * H :].set(0)
        return rnn_jax.GRUParams(kernel, recurrent, b, b_n=b_h[2 * H :])

    return _peer(rng, "GRU", rnn_jax.gru_reset_after(D, H), to_params, reset_after=True)


def _reorder(w: Any) -> Any:
    z, r, n = jnp.split(w, 3, axis=-1)
    return jnp.concatenate([r, z, n], axis=-1)


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def _peer(
    rng: np.random.Generator, name: str, cell: rnn_jax.Cell, to_params: Any, **options: Any
) -> Peer:
    import keras

    make = partial(getattr(keras.layers, name), return_sequences=True, return_state=True)
    layer = make(H, **options)
    layer.build((1, T, D))
    rest = [variable.value for variable in layer.non_trainable_variables]

    def theirs(*arguments: Any) -> Any:
        weights, state, xs = _cast(arguments, jnp.float32)
        states = [state.h[None], state.c[None]] if name == "LSTM" else [state[None]]
        (ys, *new), _ = layer.stateless_call(weights, rest, xs[None], initial_state=states)
        state = rnn_jax.LSTMState(new[0][0], new[1][0]) if name == "LSTM" else new[0][0]
        return _cast((state, ys[0]), jnp.float64)

    weights = [variable.value for variable in layer.trainable_variables]
    return single(rng, cell, weights, theirs, to_params, tolerance=1e-5)


LAYERS = {
    "SimpleRNN": simple,
    "LSTM": lstm,
    "GRU": gru,
    "GRU reset after": gru_reset_after,
}
