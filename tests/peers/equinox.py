"""Equinox: weights [gates * H, D], one bias, and a bias inside the reset of the GRU."""

from typing import Any

import jax
import numpy as np

import rnn_jax
from peers import D, H, Peer, single

LIBRARY = "equinox"


def lstm(rng: np.random.Generator) -> Peer:
    import equinox

    layer = equinox.nn.LSTMCell(D, H, key=jax.random.key(0))

    def theirs(layer: Any, state: Any, xs: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            state = rnn_jax.LSTMState(*layer(x, tuple(state)))
            return state, state.h

        return jax.lax.scan(step, state, xs)

    def to_params(layer: Any) -> Any:
        return rnn_jax.LSTMParams(layer.weight_ih.T, layer.weight_hh.T, layer.bias, w_c=None)

    return single(rng, rnn_jax.lstm(D, H), layer, theirs, to_params)


def gru(rng: np.random.Generator) -> Peer:
    import equinox

    layer = equinox.nn.GRUCell(D, H, key=jax.random.key(0))

    def theirs(layer: Any, state: Any, xs: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            state = layer(x, state)
            return state, state

        return jax.lax.scan(step, state, xs)

    def to_params(layer: Any) -> Any:
        return rnn_jax.GRUParams(layer.weight_ih.T, layer.weight_hh.T, layer.bias, layer.bias_n)

    return single(rng, rnn_jax.gru_reset_after(D, H), layer, theirs, to_params)


LAYERS = {"LSTMCell": lstm, "GRUCell": gru}
